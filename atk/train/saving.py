"""Writes the checkpoints of a run, at once or in the background, and from any number of ranks."""

import json
import shutil
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from atk.models.saved import SHARDS, WEIGHTS
from atk.train import ranks
from atk.train.checkpoint import partial_folder, reporting_failure, save_checkpoint
from atk.train.config import TrainConfig
from atk.train.replicas import full_tensor
from atk.train.shards import finish_saving_shards, model_shards, save_shards, start_saving_shards, take_shards

_TYPES = {  # names of safetensors
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class CheckpointWriter:
    """Writes one checkpoint after the other, each by `save_checkpoint`.

    As a context, it ends when nothing is left to write.

    Args:
        config: the run. With `async_save`, checkpoints are written in the background, from a copy in main memory.
        sharded: whether each rank has only its shards of the weights and of the state. Every rank then writes them.
    """

    def __init__(self, config: TrainConfig, sharded: bool):
        self.folder = Path(config.out) / "checkpoints"
        self.sharded = sharded
        self.pool = ThreadPoolExecutor(1, "checkpoint") if config.async_save else None
        self.group: Any = None  # for the ranks to agree in the background
        if sharded and config.async_save:
            self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeout))
        self.pending: Future | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, raised: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self.pool is not None:
            self.pool.shutdown()
        if raised is None:
            self.wait()

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written in the background, once it is known."""
        if self.pending is not None and self.pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete.

        Raises:
            OSError: it cannot be written.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def save(self, model: Any, step: int, state: dict[str, Any], best: bool, whole: bool = True) -> None:
        """Write a checkpoint, or start to; every rank calls this.

        Args:
            model: a `CLAP` or a `Captioner`, with its shards on every rank, or as a whole on the first; None on ranks
                without it.
            step, state, best: as in `save_checkpoint`.
            whole: gather sharded weights into one file, tensor by tensor, instead of saving them in shards.

        Raises:
            OSError: this checkpoint, or the one before, cannot be written.
        """
        self.wait()
        if self.sharded:
            self._save_sharded(model, step, state, best, whole)
        elif not ranks.is_first():
            return
        elif self.pool is None:
            save_checkpoint(self.folder, step, model, state, best)
        else:
            self._begin(model, step)
            weights = _Weights({name: _copied(value) for name, value in distinct_weights(model).items()})
            state = tree_map_only(Tensor, _copied, state)
            self.pending = self.pool.submit(save_checkpoint, self.folder, step, weights, state, best, begun=True)

    def _save_sharded(self, model: Any, step: int, state: dict[str, Any], best: bool, whole: bool) -> None:
        rest, tensors = take_shards(state)
        partial = partial_folder(self.folder, step)
        weights = {} if model is None else distinct_weights(model)
        if not whole:
            tensors |= model_shards(model.state_dict())
        if ranks.is_first():
            self._begin(model, step)
        dist.barrier()
        if self.pool is None:
            save_shards(partial / SHARDS, tensors)
            if whole:
                self._write_whole(weights, step)
            if ranks.is_first():
                save_checkpoint(self.folder, step, None, rest, best, begun=True)
            return
        shards = start_saving_shards(partial / SHARDS, tensors, self.group)
        copies = {name: _copied(full_tensor(value)) for name, value in weights.items()} if whole else None
        rest = tree_map_only(Tensor, _copied, rest)
        self.pending = self.pool.submit(self._finish_sharded, shards, copies, step, rest, best)

    def _write_whole(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Gather the weights of all ranks into one file of the first rank."""
        if not ranks.is_first():
            write_weights(None, weights)
            return
        with reporting_failure(self.folder, step):
            write_weights(partial_folder(self.folder, step) / WEIGHTS, weights)

    def _finish_sharded(
        self, shards: Future, weights: Mapping[str, Tensor] | None, step: int, rest: dict[str, Any], best: bool
    ) -> None:
        """In the background: what remains to be written when the shards of all ranks are."""
        finish_saving_shards(partial_folder(self.folder, step) / SHARDS, shards)
        if ranks.is_first():
            model = None if weights is None else _Weights(weights)
            save_checkpoint(self.folder, step, model, rest, best, begun=True)

    def _begin(self, model: Any, step: int) -> None:
        """Create the partial folder, with everything about the model but its weights."""
        partial = partial_folder(self.folder, step)
        shutil.rmtree(partial, ignore_errors=True)
        with reporting_failure(self.folder, step):
            (partial / SHARDS if self.sharded else partial).mkdir(parents=True)
            model.save_settings(partial)


class _Weights:
    """Weights to save, in place of a model whose settings have been saved."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    def save_pretrained(self, folder: Path, /) -> None:
        write_weights(folder / WEIGHTS, self.tensors)


def distinct_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights and persistent buffers of a model, each under one name although several modules may share it."""
    named: dict[int, tuple[str, Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        named.setdefault(id(value), (name, value.detach()))
    return dict(named.values())


def write_weights(path: Path | None, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a file of safetensors; sharded ones are gathered one at a time, which bounds the memory.

    Args:
        path: the file. If tensors are sharded, the first rank gives it, and the others, which help to gather, None.
        tensors: whole or sharded tensors by name, the same names on every rank.

    Raises:
        OSError: the file cannot be written. All tensors have been gathered then, so that the other ranks don't wait.
    """
    parts = _parts(tensors)
    try:
        if path is not None:
            with path.open("wb") as file:
                for part in parts:
                    file.write(part)
    finally:
        for _ in parts:
            pass


def _parts(tensors: Mapping[str, Tensor]) -> Generator[bytes | memoryview, None, None]:
    """The content of a file of safetensors: its header, and each tensor once it has been gathered."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    yield len(text).to_bytes(8, "little") + text
    for value in tensors.values():
        yield full_tensor(value).cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _copied(value: Tensor) -> Tensor:
    """A copy in main memory."""
    return value.detach().to("cpu", copy=True)
