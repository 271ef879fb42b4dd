"""Checkpoints: whole after a kill at any moment, and only those that are still needed."""

import os

import pytest
import torch

from atk.train import checkpoint


def test_an_interrupted_save_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    class Model(torch.nn.Module):
        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "weights").write_text("whole")

    checkpoint.save_checkpoint(tmp_path, 1, Model(), {"step": 1}, best=True)
    # Killed at the rename of the folder, at the link to the best, and between that link and the one to the last.
    for name, passes in (("rename", 0), ("replace", 0), ("replace", 1)):
        whole, calls = getattr(os, name), []

        def killed(*paths, passes=passes, whole=whole, calls=calls):
            calls.append(paths)
            if len(calls) > passes:
                raise KeyboardInterrupt
            whole(*paths)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, name, killed)
            checkpoint.save_checkpoint(tmp_path, 2, Model(), {"step": 2}, best=True)
        assert checkpoint.load_state(tmp_path) == {"step": 1}
        assert (tmp_path / "best" / "weights").read_text() == "whole"
    checkpoint.save_checkpoint(tmp_path, 1, Model(), {"step": 1}, best=True)
    checkpoint.save_checkpoint(tmp_path, 2, Model(), {"step": 2}, best=False)
    assert checkpoint.load_state(tmp_path) == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000001", "step-00000002"]
    checkpoint.save_checkpoint(tmp_path, 3, Model(), {"step": 3}, best=False)
    assert not (tmp_path / "step-00000002").exists()
