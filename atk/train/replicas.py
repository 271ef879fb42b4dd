"""How ranks share the weights of a model: replicated by DDP, or sharded by FSDP2."""

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from atk.distributed.collectives import world_size
from atk.models.layers import innermost_layers
from atk.train import grad_cache, ranks
from atk.train.grad_cache import CachedTask, Embeddings


def replicate_or_shard(task: CachedTask, shard: bool) -> "Replicas":
    """How the ranks are to share the weights of a task."""
    return Shards(task) if shard and world_size() > 1 else Replicas(task)


class Replicas:
    """All weights on every rank, their gradients averaged by DDP while the last backward of a step runs.

    With one rank there is nothing to share.
    """

    def __init__(self, task: CachedTask):
        self.task = task
        self.encode_last: Callable[[Any], tuple[Embeddings, list[Tensor]]] | None = None
        if world_size() > 1:
            # A convolution of one channel has its gradient in another, equally good layout.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.encode_last = nn.parallel.DistributedDataParallel(_Encode(task), gradient_as_bucket_view=True)

    def finish(self) -> None:
        """Called when all gradients of a step are there."""

    def groups(self, parameters: list[Tensor]) -> list:
        """The parameters as the optimiser takes them."""
        return parameters

    def whole_model(self, device: torch.device) -> AbstractContextManager:
        """A context in which the first rank can use and save the model on its own, on a device if it is sharded."""
        return contextlib.nullcontext()

    def clip_gradients(self, parameters: list[Tensor], largest: float) -> Tensor:
        """Scale the gradients down to the norm `largest`; the norm before."""
        return nn.utils.clip_grad_norm_(parameters, largest)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict:
        """Its state as one rank alone would have it."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """Take what `optimizer_state` gave, on any number of ranks."""
        optimizer.load_state_dict(state)


class Shards(Replicas):
    """Every rank keeps a part of each weight, its gradient and its moments; layers are put together when they are used.

    The criterion, with a temperature and at most a mapper, stays whole on every rank.
    """

    def __init__(self, task: CachedTask):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.task, self.encode_last, model = task, None, task.model
        self.device = next(model.parameters()).device
        self.whole = _copy_on_cpu(model) if ranks.is_first() else None
        mesh = init_device_mesh(self.device.type, (world_size(),))
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of layers whose outputs nothing changes in place
        for layer in (*innermost_layers(model), model):
            fully_shard(layer, mesh=mesh)
        for name in model.encoders:
            register_fsdp_forward_method(model, name)

    def finish(self) -> None:
        """Average the gradients of the criterion, as FSDP has averaged those of the model."""
        for parameter in self.task.criterion.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()

    def groups(self, parameters: list[Tensor]) -> list[dict]:
        """Sharded weights and whole ones apart: no fused update takes both."""
        return [{"params": kind} for kind in _by_kind(parameters)]

    @contextmanager
    def whole_model(self, device: torch.device) -> Iterator[None]:
        """As in `Replicas`: on the first rank the task's model is one with all weights."""
        sharded = self.task.model
        kept = {} if self.whole is None else self.whole.state_dict()
        for name, value in sharded.state_dict().items():  # one at a time, on all ranks
            value = whole_tensor(value)
            if name in kept:
                kept[name].copy_(value)
        if self.whole is None:
            yield
            return
        self.task.model = self.whole.to(device)
        try:
            yield
        finally:
            self.task.model = sharded
            self.whole.cpu()

    def clip_gradients(self, parameters: list[Tensor], largest: float) -> Tensor:
        """As in `Replicas`; the norm is that of all shards."""
        kinds = _by_kind([parameter.grad for parameter in parameters if parameter.grad is not None])
        norms = [whole_tensor(nn.utils.get_total_norm(kind)) for kind in kinds]
        norm = torch.stack(norms).norm()
        for kind in kinds:
            for gradient in kind:
                gradient.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict:
        """As in `Replicas`; put together one tensor at a time, and kept on the CPU of the first rank alone."""
        state = optimizer.state_dict()
        found: dict = {}
        for number, kept in state["state"].items():
            whole = {name: _on_cpu(whole_tensor(value)) for name, value in kept.items()}
            if ranks.is_first():
                found[number] = whole
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        return {"state": found, "param_groups": [state["param_groups"][0] | {"params": numbers}]}

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: dict) -> None:
        """As in `Replicas`; every rank keeps its part."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found = {
            number: {name: _sharded_like(parameters[number], value) for name, value in kept.items()}
            for number, kept in state["state"].items()
        }
        (saved,), own = state["param_groups"], optimizer.state_dict()["param_groups"]
        groups = [saved | {"params": group["params"]} for group in own]
        optimizer.load_state_dict({"state": found, "param_groups": groups})


class _Encode(nn.Module):
    """What DDP sees of a task: its weights, and `encode` as `forward`."""

    def __init__(self, task: CachedTask):
        super().__init__()
        self.model, self.criterion = task.model, task.criterion
        self.task = task
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, part: Any) -> tuple[Embeddings, list[Tensor]]:
        return grad_cache.encode(self.task, part), [_Touch.apply(*self.trained)]


class _Touch(torch.autograd.Function):
    """Zero, whose backward reaches every weight and adds nothing: DDP waits for all, and a part may not use some."""

    @staticmethod
    def forward(ctx, *weights: Tensor) -> Tensor:
        ctx.weights = len(weights)
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, ...]:
        return (None,) * ctx.weights


def _copy_on_cpu(model: nn.Module) -> nn.Module:
    """A copy that takes nothing of the model's device."""
    copies: dict = {}
    for weight in model.parameters():
        copies[id(weight)] = nn.Parameter(weight.detach().cpu().clone(), weight.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.cpu().clone()
    return copy.deepcopy(model, copies)


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _is_sharded(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def _by_kind(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Sharded tensors and whole ones apart; no empty list."""
    kinds = [t for t in tensors if _is_sharded(t)], [t for t in tensors if not _is_sharded(t)]
    return [kind for kind in kinds if kind]


def whole_tensor(value: Any) -> Any:
    """A sharded tensor put together; anything else as it is."""
    return value.full_tensor() if _is_sharded(value) else value


def _sharded_like(parameter: Tensor, value: Any) -> Any:
    from torch.distributed.tensor import distribute_tensor

    if not _is_sharded(parameter) or not isinstance(value, Tensor) or value.shape != parameter.shape or not value.dim():
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
