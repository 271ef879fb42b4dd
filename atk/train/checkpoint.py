"""Checkpoints that survive a kill at any moment: written to a temporary folder, renamed, then linked."""

import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch

_STATE = "training.pt"


class Saveable(Protocol):
    """A model that can be saved to a folder."""

    def save_pretrained(self, folder: Path, /) -> None:
        """Write configuration and weights to `folder`, which is created."""


def save_checkpoint(folder: Path, step: int, model: Saveable, state: dict[str, Any], best: bool) -> Path:
    """Write `folder/step-<step>`: the model by `save_pretrained`, everything else to training.pt.

    Then link `folder/last` to it, and `folder/best` too if `best`, and remove the checkpoints without a link.

    Args:
        folder: the checkpoints of a run.
        step: number of steps done.
        model: the model.
        state: everything else that resuming needs.
        best: whether this is the best checkpoint so far.

    Returns:
        The folder of the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    partial = folder / f".partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    torch.save(state, partial / _STATE)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    if target.exists():  # an earlier run was killed between this rename and the links below
        shutil.rmtree(target)
    partial.rename(target)
    if best:  # before "last": a run killed in between resumes at the previous step and saves this one again
        _link(folder / "best", target.name)
    _link(folder / "last", target.name)
    _sync(folder)
    kept = {str((folder / name).readlink()) for name in ("last", "best") if (folder / name).is_symlink()}
    for path in folder.iterdir():
        if not path.is_symlink() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    return target


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; after a kill it holds either the old text or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def load_state(folder: Path) -> dict[str, Any]:
    """Load everything but the model's weights from `folder/last`, to the CPU.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    path = folder / "last" / _STATE
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint to resume from: {path} does not exist")
    return torch.load(path, map_location="cpu", weights_only=True)


def model_folder(path: Path) -> Path:
    """The saved model of a run folder (its best checkpoint), or `path` itself if it is not a run folder."""
    return best_or_last(path) if (path / "checkpoints").is_dir() else path


def best_or_last(run: Path) -> Path:
    """The checkpoint of a run folder to use: the best by validation, or the last of a run without validation.

    Raises:
        FileNotFoundError: `run` holds no checkpoint.
    """
    for name in ("best", "last"):
        if (run / "checkpoints" / name).is_dir():
            return run / "checkpoints" / name
    raise FileNotFoundError(f"{run} holds no checkpoint: expected {run / 'checkpoints' / 'last'}, written by atk train")


def _link(path: Path, target: str) -> None:
    partial = path.with_name(f".{path.name}-link")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
