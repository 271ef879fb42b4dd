"""The part of a checkpoint that every rank writes for itself: its shards of weights and of the optimizer state.

The format is that of `torch.distributed.checkpoint`. Any number of ranks can read it, also into weights that are not
sharded.
"""

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

_MODEL = "model"
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


def model_shards(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model under the names that `atk.models.saved.load_weights` reads, such as "model.NAME"."""
    return {f"{_MODEL}.{name}": value for name, value in weights.items()}


def save_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the shards of all ranks to `folder`; every rank calls this.

    Raises:
        OSError: a rank cannot write.
    """
    with _reporting_failure(folder):
        dcp.save(tensors, checkpoint_id=folder)


def start_saving_shards(folder: Path, tensors: dict[str, Tensor], group: ProcessGroup) -> Future:
    """Copy the shards of this rank to main memory, and write those of all ranks in another thread.

    Args:
        folder, tensors: as in `save_shards`.
        group: a group for these messages alone, which is not blocked by those of training.

    Returns:
        What `finish_saving_shards` waits for.
    """
    future = dcp.async_save(tensors, checkpoint_id=folder, process_group=group)
    return future if isinstance(future, Future) else future.upload_completion


def finish_saving_shards(folder: Path, future: Future) -> None:
    """Wait for what `start_saving_shards` has started; errors are as in `save_shards`."""
    with _reporting_failure(folder):
        future.result()


@contextmanager
def _reporting_failure(folder: Path) -> Generator[None, None, None]:
    try:
        yield
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
        tensors = {
            name: _like(value, _weight(name, parameters))
            for name, value in stored.items()
            if not name.startswith(f"{_MODEL}.")
        }
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
