"""Checkpoints are complete after a kill at any moment, and only the needed ones are kept."""

from pathlib import Path

import pytest
import torch

from atk.train import checkpoint


class Model(torch.nn.Module):
    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "weights").write_text("complete")


def interrupt_call(patch, name, calls_before):
    """Make the `Path` method `name` raise KeyboardInterrupt after `calls_before` calls."""
    original = getattr(Path, name)
    calls = []

    def interrupted(*paths):
        calls.append(paths)
        if len(calls) > calls_before:
            raise KeyboardInterrupt
        return original(*paths)

    patch.setattr(Path, name, interrupted)


# Interrupted when the folder is renamed, when `best` is linked, and after that, before `last` is linked.
@pytest.mark.parametrize(("name", "calls_before"), [("rename", 0), ("replace", 0), ("replace", 1)])
def test_an_interrupted_save_leaves_the_last_checkpoint_complete(tmp_path, name, calls_before):
    checkpoint.save_checkpoint(tmp_path, 1, Model(), {"step": 1}, best=True)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_call(patch, name, calls_before)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_checkpoint(tmp_path, 2, Model(), {"step": 2}, best=True)
    assert checkpoint.load_state(tmp_path) == {"step": 1}
    assert (tmp_path / "best" / "weights").read_text() == "complete"
    checkpoint.save_checkpoint(tmp_path, 1, Model(), {"step": 1}, best=True)
    checkpoint.save_checkpoint(tmp_path, 2, Model(), {"step": 2}, best=False)
    assert checkpoint.load_state(tmp_path) == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000001", "step-00000002"]
    checkpoint.save_checkpoint(tmp_path, 3, Model(), {"step": 3}, best=False)
    assert not (tmp_path / "step-00000002").exists()
