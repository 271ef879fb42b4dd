"""Checkpoints are complete after a kill at any moment, and only the needed ones are kept."""

import contextlib
import errno
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from atk.models.saved import best_or_last, find_checkpoint
from atk.train import checkpoint
from atk.train.interrupts import interrupts
from atk.train.lora import load_base
from atk.train.saved_loss import saved_pair_loss
from atk.train.shards import load_shards


class Model(torch.nn.Module):
    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "weights").write_text("complete")
        (folder / "config.json").write_text('{"width": 3}')
        save_file({"weight": torch.ones(1000)}, folder / "model.safetensors")


def save(folder, step, best):
    checkpoint.save_checkpoint(folder, step, Model(), {"step": step, "optimizer": torch.ones(1000)}, best=best)


def step_of(path):
    return path and torch.load(path / "training.pt")["step"]


def copy_with_folders(run, copy):
    shutil.copytree(run, copy)  # follows links, as `cp -rL`, `zip -r`, and object stores do


def copy_without_links(run, copy):
    shutil.copytree(run, copy, symlinks=True)
    for name in ("best", "last"):
        (copy / name).unlink(missing_ok=True)


def copy_with_text(run, copy):
    """Copy as a checkout does on a file system without links: a link becomes a text file with its target."""
    copy_without_links(run, copy)
    for name in ("best", "last"):
        if (run / name).is_symlink():
            (copy / name).write_text(str((run / name).readlink()))


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


# Interrupted before the folder is renamed, before `best` is linked, and between linking `best` and `last`.
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


@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("copy", [copy_with_folders, copy_without_links, copy_with_text])
def test_a_copied_run_resumes_and_saves(tmp_path, copy, best):
    run, copied = tmp_path / "run", tmp_path / "copied"
    save(run, 1, best=True)
    save(run, 2, best=False)
    copy(run, copied)
    assert step_of(checkpoint.last_whole_checkpoint(copied)) == 2 and checkpoint.load_state(copied)["step"] == 2
    assert step_of(find_checkpoint(copied, "best")) == 1
    for step, expected in ((3, 3 if best else 1), (4, 4 if best else 1)):
        save(copied, step, best=best)
        assert checkpoint.load_state(copied)["step"] == step
        assert step_of(find_checkpoint(copied, "best")) == expected
    assert (copied / "last" / "training.pt").is_file() and (copied / "best" / "training.pt").is_file()
    assert len(list(copied.glob("step-*"))) <= 2


def test_a_run_without_validation_has_no_best(tmp_path):
    run, copied = tmp_path / "run" / "checkpoints", tmp_path / "copied" / "checkpoints"
    save(run, 1, best=False)
    save(run, 2, best=False)
    copy_without_links(run, copied)
    assert find_checkpoint(copied, "best") is None and step_of(best_or_last(copied.parent)) == 2


def test_saving_does_not_need_links(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", fail)
    for step, best in ((1, True), (2, False), (3, False), (4, True)):
        save(tmp_path, step, best)
    save(tmp_path, 5, False)
    assert checkpoint.load_state(tmp_path)["step"] == 5 and step_of(find_checkpoint(tmp_path, "best")) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000004", "step-00000005"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_is_reported_and_loses_nothing(tmp_path, monkeypatch, error):
    save(tmp_path, 1, best=True)
    before = sorted(tmp_path.rglob("*"))

    def fail(_, path):
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match=r"step-00000002: cannot be saved \(.*\); checkpoints left: step-00000001"):
            save(tmp_path, 2, best=True)
    assert sorted(tmp_path.rglob("*")) == before and checkpoint.load_state(tmp_path)["step"] == 1
    save(tmp_path, 2, best=True)
    assert checkpoint.load_state(tmp_path)["step"] == 2


@pytest.mark.parametrize(("code", "error"), [(errno.EINVAL, None), (errno.EIO, OSError)])
def test_only_file_systems_that_cannot_sync_folders_may_refuse_to(tmp_path, monkeypatch, code, error):
    def fail(descriptor):
        raise OSError(code, "refused")

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(error) if error else contextlib.nullcontext():
        checkpoint._sync(tmp_path)


def test_nothing_to_resume_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint to resume from: .*training\.pt does not exist"):
        checkpoint.load_state(tmp_path)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (saved_pair_loss, r"training\.pt: damaged or cut short \("),
        (lambda folder: load_base(Model(), folder / "base"), "base: cannot resume without the weights that the run st"),
        (lambda folder: load_shards(folder, {}, []), r": cannot be read \("),
    ],
)
def test_a_damaged_state_is_named(tmp_path, load, message):
    (tmp_path / "training.pt").write_bytes(b"PK half")
    (tmp_path / "base").write_bytes(b"half")
    (tmp_path / ".metadata").write_bytes(b"half")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_run_in_a_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def run():
        with interrupts() as stop:
            seen.extend((signal.getsignal(signal.SIGINT), stop.is_set()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before, False]


@pytest.mark.parametrize("keep", [0, 7, 0.5, -1])
@pytest.mark.parametrize("name", ["training.pt", "model.safetensors", "config.json"])
def test_a_file_cut_short_is_named_with_the_checkpoint_that_is_whole(tmp_path, name, keep):
    save(tmp_path, 1, best=True)
    damaged = tmp_path / "last" / name
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=rf"{name}: damaged or cut short \(.*\); no other checkpoint is whole"):
        checkpoint.last_whole_checkpoint(tmp_path)
    damaged.write_bytes(content)
    save(tmp_path, 2, best=False)
    damaged.write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"{name}: .*; delete (\S+) to resume from step-00000001, which is whole"
    ) as error:
        checkpoint.last_whole_checkpoint(tmp_path)
    shutil.rmtree(str(error.value).partition("delete ")[2].partition(" to resume")[0])
    assert checkpoint.load_state(tmp_path)["step"] == 1
    assert step_of(checkpoint.last_whole_checkpoint(tmp_path)) == 1


def test_the_only_checkpoint_of_a_copy_stays_the_best(tmp_path):
    checkpoint.save_checkpoint(tmp_path / "run", 1, Model(), {"step": 1, "best": 0.9}, best=True)
    copy_without_links(tmp_path / "run", tmp_path / "copied")
    checkpoint.save_checkpoint(tmp_path / "copied", 2, Model(), {"step": 2, "best": 0.9}, best=False)
    assert step_of(find_checkpoint(tmp_path / "copied", "best")) == 1
