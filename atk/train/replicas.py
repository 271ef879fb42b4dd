"""How ranks share the weights of a model: replicated by DDP or sharded by FSDP2."""

import contextlib
import copy
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from atk.distributed.collectives import world_size
from atk.models.layers import innermost_layers
from atk.train import grad_cache, ranks
from atk.train.grad_cache import CachedTask, Embeddings, EncodeLast
from atk.train.optimizer import load_ordered_state, ordered_state, parameter_groups

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def replicate_or_shard(task: CachedTask, shard: bool) -> "Replicas":
    """Replicate the weights of a task on all ranks, or shard them over several ranks if `shard`."""
    return Shards(task) if shard and world_size() > 1 else Replicas(task)


class Replicas:
    """All weights on every rank; DDP averages their gradients during the last backward of a step.

    With one rank this does nothing.

    Args:
        task: the task whose model and criterion are trained.
    """

    sharded = False  # whether each rank has only a part of the weights

    def __init__(self, task: CachedTask):
        self.task = task
        self.encode_last: EncodeLast | None = None
        if world_size() > 1:
            # The gradient of a convolution with one channel has a different, equally good memory layout.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self.encode_last = nn.parallel.DistributedDataParallel(_Encode(task), gradient_as_bucket_view=True)

    def finish(self) -> None:
        """Complete the gradients of a step after its last backward."""

    def groups(
        self, parameters: Sequence[Tensor], undecayed: Sequence[Tensor], lr_factors: Mapping[int, float] | None = None
    ) -> list[dict[str, Any]]:
        """The parameters in the groups that the optimizer needs; arguments are as in `parameter_groups`."""
        return parameter_groups(parameters, undecayed, lr_factors)

    def full_model(self, device: torch.device) -> AbstractContextManager[None]:
        """A context in which the first rank can use and save the whole model; a sharded one is moved to `device`."""
        return contextlib.nullcontext()

    def clip_gradients(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """Scale the gradients down to a norm of at most `max_norm`; returns their original norm."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def optimizer_state(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> dict[str, Any]:
        """The state of the optimizer, independent of groups and ranks."""
        return ordered_state(optimizer, parameters)

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], state: dict[str, Any]
    ) -> None:
        """Load what `optimizer_state` returned, on any number of ranks."""
        load_ordered_state(optimizer, parameters, state)

    def shares(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """This rank's shares of `values`, which are like `parameters`."""
        return list(values)


class Shards(Replicas):
    """Every rank keeps a shard of each weight, gradient, and optimizer state; layers are gathered when they are used.

    The criterion (a temperature and at most a mapper) is replicated.

    Args:
        task: the task whose model is sharded in place.
    """

    sharded = True

    def __init__(self, task: CachedTask):
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        model = task.model
        self.task = task
        self.encode_last = None
        self.device = next(model.parameters()).device
        self.skeleton = _skeleton(model) if ranks.is_first() else None
        mesh = init_device_mesh(self.device.type, (world_size(),))
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # nothing changes the outputs of layers in place
        for layer in (*innermost_layers(model), model):
            fully_shard(layer, mesh=mesh)
        for name in task.model.encoders:
            register_fsdp_forward_method(model, name)

    def finish(self) -> None:
        """Average the gradients of the criterion; FSDP has averaged those of the model."""
        for parameter in self.task.criterion.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()

    def groups(
        self, parameters: Sequence[Tensor], undecayed: Sequence[Tensor], lr_factors: Mapping[int, float] | None = None
    ) -> list[dict[str, Any]]:
        """As in `Replicas`, with sharded and replicated parameters apart, because no fused update takes both."""
        parts = _split_by_sharding(parameters)
        return [group for part in parts for group in parameter_groups(part, undecayed, lr_factors)]

    @contextmanager
    def full_model(self, device: torch.device) -> Generator[None, None, None]:
        """As in `Replicas`; on the first rank, the model of the task is a copy with all weights, freed at the end."""
        sharded = self.task.model
        wanted = {} if self.skeleton is None else self.skeleton.state_dict(keep_vars=True)
        whole: dict[int, Any] = {}
        for name, value in sharded.state_dict().items():  # gathered one at a time, by all ranks
            gathered = full_tensor(value)
            if name in wanted and id(wanted[name]) not in whole:
                whole[id(wanted[name])] = _like(wanted[name], gathered.to(device))
        if self.skeleton is None:
            yield
            return
        self.task.model = copy.deepcopy(self.skeleton, whole).to(device)
        try:
            yield
        finally:
            self.task.model = sharded

    def clip_gradients(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """As in `Replicas`; the norm is over all shards."""
        groups = _split_by_sharding(parameter.grad for parameter in parameters if parameter.grad is not None)
        norms = [full_tensor(nn.utils.get_total_norm(grads)) for grads in groups]
        norm = torch.stack(norms).norm()
        for grads in groups:
            for grad in grads:
                grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def load_optimizer_state(
        self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], state: dict[str, Any]
    ) -> None:
        """As in `Replicas`; every rank keeps its shard."""
        sharded = {
            index: {name: _sharded_like(parameters[index], value) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        load_ordered_state(optimizer, parameters, {"state": sharded, "param_groups": state["param_groups"]})

    def shares(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """As in `Replicas`."""
        return [_sharded_like(*pair) for pair in zip(parameters, values, strict=True)]


class _Encode(nn.Module):
    """The module that DDP wraps: the weights of a task, with `encode` as `forward`."""

    def __init__(self, task: CachedTask):
        super().__init__()
        self.model = task.model
        self.criterion = task.criterion
        self.task = task
        self.trained = [parameter for parameter in self.parameters() if parameter.requires_grad]

    def forward(self, part: Any) -> tuple[Embeddings, list[Tensor]]:
        return grad_cache.encode(self.task, part), [_Touch.apply(*self.trained)]


class _Touch(torch.autograd.Function):
    """Returns 0; its backward reaches every weight but gives it no gradient.

    DDP waits for all weights, but a part may not use some of them.
    """

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        ctx.weights = len(weights)
        return weights[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        return (None,) * ctx.weights


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy of the model whose weights take no memory; its buffers are on the CPU."""
    copies: dict[int, Any] = {}
    for weight in model.parameters():
        copies[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.cpu().clone()
    return copy.deepcopy(model, copies)


def _like(wanted: Tensor, values: Tensor) -> Tensor:
    """`values` as a weight or a buffer, as `wanted` is."""
    return nn.Parameter(values, wanted.requires_grad) if isinstance(wanted, nn.Parameter) else values.clone()


def _as_dtensor(value: Any) -> "DTensor | None":
    """`value` if it is sharded, else None."""
    from torch.distributed.tensor import DTensor

    return value if isinstance(value, DTensor) else None


def _split_by_sharding(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Sharded tensors and the others in separate lists, without empty lists."""
    sharded: list[Tensor] = []
    replicated: list[Tensor] = []
    for tensor in tensors:
        (replicated if _as_dtensor(tensor) is None else sharded).append(tensor)
    return [group for group in (sharded, replicated) if group]


def full_tensor(value: Any) -> Any:
    """Gather a sharded tensor; anything else is returned as it is."""
    sharded = _as_dtensor(value)
    return value if sharded is None else sharded.full_tensor()


def _sharded_like(parameter: Tensor, value: Any) -> Any:
    """`value` sharded as `parameter` is, if it is a tensor of the same shape."""
    from torch.distributed.tensor import distribute_tensor

    like = _as_dtensor(parameter)
    if like is None or not isinstance(value, Tensor) or value.shape != parameter.shape or not value.dim():
        return value
    if _as_dtensor(value) is not None:
        return value
    return distribute_tensor(value.to(parameter.device), like.device_mesh, like.placements)
