"""Checkpoints that survive a kill at any moment: written to a temporary folder, renamed, then named last or best."""

import errno
import math
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from atk.extras import optional_imports
from atk.models.saved import SHARDS, damaged_file, find_checkpoint, step_folders
from atk.train.shards import load_shards

_STATE = "training.pt"


class Saveable(Protocol):
    """A model that can be saved to a folder."""

    def save_pretrained(self, folder: Path, /) -> None:
        """Write configuration and weights to `folder`, which is created."""


def partial_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it gets its name."""
    return folder / f".partial-{step:08d}"


def save_checkpoint(
    folder: Path, step: int, model: Saveable | None, state: dict[str, Any], best: bool, begun: bool = False
) -> Path:
    """Write `folder/step-<step>`: the model by `save_pretrained`, everything else to training.pt.

    Then name it `folder/last`, and `folder/best` too if `best`, and remove the checkpoints without a name. A name is a
    link; where links cannot be made, it is a text file with the name of the checkpoint.

    Args:
        folder: the checkpoints of a run.
        step: number of steps done.
        model: the model; None if it has been written.
        state: everything else that resuming needs.
        best: whether this is the best checkpoint so far.
        begun: whether a part of the checkpoint is already in the `partial_folder`.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: the checkpoint cannot be written, as on a full disk; the earlier ones are left whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    partial = partial_folder(folder, step)
    if not begun:
        shutil.rmtree(partial, ignore_errors=True)
    with reporting_failure(folder, step):
        _write(partial, model, state)
    earlier = find_checkpoint(folder, "best")
    steps = step_folders(folder)
    if earlier is None and len(steps) == 1 and state.get("best", -math.inf) > -math.inf:
        earlier = steps[0]  # the run has a best score, so this checkpoint holds it; a copy has lost its names
    if target.exists():  # an earlier run was killed between this rename and the names below
        shutil.rmtree(target)
    partial.rename(target)
    if best:  # before "last": a run killed in between resumes at the previous step and saves this one again
        _name(folder / "best", target.name)
    elif earlier is not None and earlier != folder / "best":  # the name was lost in a copy
        _name(folder / "best", earlier.name)
    _name(folder / "last", target.name)
    _sync(folder)
    kept = {path.resolve() for name in ("best", "last") if (path := find_checkpoint(folder, name)) is not None}
    for path in step_folders(folder):
        if path.resolve() not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".partial-*"):
        shutil.rmtree(path, ignore_errors=True)
    return target


def _write(partial: Path, model: Saveable | None, state: dict[str, Any]) -> None:
    if model is not None:
        model.save_pretrained(partial)
    torch.save(state, partial / _STATE)
    for path in (*partial.rglob("*"), partial):
        _sync(path)


@contextmanager
def reporting_failure(folder: Path, step: int) -> Generator[None, None, None]:
    """A context that writes a part of the checkpoint of a step; if that fails, its partial folder is removed.

    Raises:
        OSError: the part cannot be written; the message names the checkpoints that are left.
    """
    with optional_imports:
        from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial_folder(folder, step), ignore_errors=True)
        reason = " ".join(str(error).split())
        left = ", ".join(path.name for path in step_folders(folder)) or "none"
        raise OSError(f"{folder / f'step-{step:08d}'}: cannot be saved ({reason}); checkpoints left: {left}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; after a kill it holds either the old text or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint in the folder `checkpoints` of a run, verified to be whole; None if there is none.

    Raises:
        ValueError: one of its files is cut short; the message names the file, and a checkpoint that is whole, if any.
    """
    last = find_checkpoint(folder, "last")
    if last is not None and (damaged := damaged_file(last)) is not None:
        raise ValueError(_damage(damaged, last, "its end is missing"))
    return last


def load_state(folder: Path, parameters: Sequence[Tensor] = ()) -> dict[str, Any]:
    """Load everything but the model's weights from the last checkpoint in `folder`: to the CPU, or in shards.

    Args:
        folder: the checkpoints of a run.
        parameters: the weights that are trained, which tell how the shards of a checkpoint are distributed.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the file is damaged.
    """
    last = find_checkpoint(folder, "last")
    if last is None or not (last / _STATE).is_file():
        raise FileNotFoundError(f"no checkpoint to resume from: {folder / 'last' / _STATE} does not exist")
    file = last / _STATE
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not state.get("sharded"):
            return state
        file = last / SHARDS
        return load_shards(file, state, parameters)
    except Exception as error:  # of many types, depending on what is damaged
        raise ValueError(_damage(file, last, " ".join(str(error).split())[:200])) from error


def _damage(file: Path, checkpoint: Path, reason: str) -> str:
    """Say which file is damaged, and how to resume from a checkpoint that is intact."""
    real = checkpoint.resolve()
    others = [path for path in step_folders(checkpoint.parent) if path.resolve() != real]
    whole = next((path for path in reversed(others) if damaged_file(path) is None), None)
    way_out = f"delete {real} to resume from {whole.name}, which is whole" if whole else "no other checkpoint is whole"
    return f"{file}: damaged or cut short ({reason}); {way_out}"


def _name(path: Path, target: str) -> None:
    """Make `path` a name of the folder `target` beside it."""
    partial = path.with_name(f".{path.name}-link")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(target)
    except OSError:  # a file system without links
        partial.write_text(target + "\n", encoding="utf-8")
    if path.is_dir() and not path.is_symlink():  # a copy of the run in which links became folders
        shutil.rmtree(path)
    partial.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)
