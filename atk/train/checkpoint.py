"""Checkpoints that a kill at any moment leaves whole: written aside, renamed, then pointed to."""

import os
import shutil
from pathlib import Path

import torch
from torch import nn

_STATE = "training.pt"


def save_checkpoint(folder: Path, step: int, model: nn.Module, state: dict, best: bool) -> Path:
    """Write `folder/step-<step>` (the model by `save_pretrained`, everything else in training.pt) and prune.

    `folder/last` then links to it, and `folder/best` too when `best`; steps neither points to are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target, partial = folder / f"step-{step:08d}", folder / f".partial-{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    torch.save(state, partial / _STATE)
    for path in (*partial.rglob("*"), partial):
        _sync(path)
    if target.exists():  # a kill came between this rename and the links below
        shutil.rmtree(target)
    os.rename(partial, target)
    if best:  # before "last": a run killed in between resumes at the step before and comes here again
        _link(folder / "best", target.name)
    _link(folder / "last", target.name)
    _sync(folder)
    kept = {os.readlink(folder / name) for name in ("last", "best") if (folder / name).is_symlink()}
    for path in folder.iterdir():
        if not path.is_symlink() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
    return target


def write_whole(path: Path, text: str) -> None:
    """Write a file that a kill leaves either as it was or whole."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text)
    os.replace(aside, path)


def load_state(folder: Path) -> dict:
    """Everything but the model's weights of `folder/last`, on the CPU: where Adam keeps its step counts.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    path = folder / "last" / _STATE
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint to resume from: {path} does not exist")
    return torch.load(path, map_location="cpu", weights_only=True)


def model_folder(path: Path) -> Path:
    """The saved model of a run folder (its best checkpoint), or `path` itself where that is no run."""
    return best_or_last(path) if (path / "checkpoints").is_dir() else path


def best_or_last(run: Path) -> Path:
    """The checkpoint of a run folder to use: the best by validation where there is one, else the last.

    Raises:
        FileNotFoundError: `run` holds no checkpoint.
    """
    for name in ("best", "last"):
        if (run / "checkpoints" / name).is_dir():
            return run / "checkpoints" / name
    raise FileNotFoundError(f"{run} holds no checkpoint: expected {run / 'checkpoints' / 'last'}, written by atk train")


def _link(path: Path, target: str) -> None:
    aside = path.with_name(f".{path.name}-link")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    os.replace(aside, path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
