"""The part of a checkpoint that every rank writes for itself: its shards of the optimizer state and of weights.

The format is that of `torch.distributed.checkpoint`. Any number of ranks can read it, also into weights that are not
sharded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

_LISTS = ("trained", "average")  # lists of one tensor per trained weight


def take_shards(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state of a run without its large tensors, and these tensors by name, such as "optimizer.3.exp_avg"."""
    tensors = {}
    optimizer = state["optimizer"]
    for index, values in optimizer["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    for key in _LISTS:
        tensors |= {f"{key}.{index}": value for index, value in enumerate(state[key] or ())}
    return state | dict.fromkeys(_LISTS) | {"optimizer": optimizer | {"state": {}}, "sharded": True}, tensors


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the shards of all ranks to `folder`; every rank calls this.

    Raises:
        OSError: a rank cannot write.
    """
    try:
        dcp.save(tensors, checkpoint_id=folder)
    except CheckpointException as error:
        raise OSError(f"{folder}: cannot be saved ({_reason(error)})") from None


def load_shards(folder: Path, state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """Put the tensors that `take_shards` took back into the state of a run, sharded like `parameters`.

    Args:
        folder: where `save_shards` wrote them.
        state: the rest of the state.
        parameters: the trained weights, in order.

    Raises:
        ValueError: a file is missing or damaged, or belongs to other weights.
    """
    try:
        stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        tensors = {name: _like(value, _weight(name, parameters)) for name, value in stored.items()}
        dcp.load(tensors, checkpoint_id=folder)
    except (CheckpointException, Exception) as error:  # noqa: BLE001 (of many types, depending on what is damaged)
        raise ValueError(f"{folder}: cannot be read ({_reason(error)})") from None
    optimizer: dict[int, dict[str, Tensor]] = {}
    lists: dict[str, dict[int, Tensor]] = {}
    for name, value in tensors.items():
        key, index, *rest = name.split(".")
        if rest:
            optimizer.setdefault(int(index), {})[rest[0]] = value
        else:
            lists.setdefault(key, {})[int(index)] = value
    ordered = {key: [values[index] for index in sorted(values)] for key, values in lists.items()}
    return state | {"optimizer": state["optimizer"] | {"state": optimizer}} | ordered


def _weight(name: str, parameters: Sequence[Tensor]) -> Tensor:
    index = int(name.split(".")[1])
    if index >= len(parameters):
        raise ValueError(f"it holds more than the {len(parameters)} weights that are trained")
    return parameters[index].detach()


def _like(stored: Any, weight: Tensor) -> Tensor:
    """An empty tensor for a stored one: sharded like its weight if their shapes agree."""
    assert isinstance(stored, TensorStorageMetadata)
    if stored.size == weight.shape and weight.dim():
        return torch.zeros_like(weight, dtype=stored.properties.dtype)
    return torch.zeros(stored.size, dtype=stored.properties.dtype)


def _reason(error: BaseException) -> str:
    failures = getattr(error, "failures", None)  # of every rank that failed: (error, traceback)
    first = next(iter(failures.values()))[0] if failures else error
    return " ".join((str(first) or type(first).__name__).split())[:200]
