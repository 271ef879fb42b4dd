"""Redirects Triton's launches on CPU tensors to the machine."""

import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import jit

import atk.kernels.launch as atk_launch
from atk.kernels import availability
from ptx_machine.grid import Options
from ptx_machine.launch import launch
from ptx_machine.program import Program
from ptx_machine.report import Report
from ptx_machine.translate import translate

_translated: dict[str, Program] = {}  # by PTX


class Machine:
    """Compiles and executes what is launched.

    Attributes:
        report: faults, notes, and launches.
        ptx: the PTX of each kernel, as last executed.
    """

    def __init__(self, capability: tuple[int, int], options: Options, edit: Callable[[str, str], str] | None):
        self.options, self.edit, self.report = options, edit, Report()
        self.target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
        self.backend = make_backend(self.target)
        self.ptx: dict[str, str] = {}
        self.compiled: dict[str, tuple[str, int]] = {}  # PTX and bytes of shared memory

    def run(self, function: jit.JITFunction, args: tuple, grid, kwargs: dict) -> None:
        """Executes a launch. Takes what `JITFunction.run` takes."""
        kwargs = kwargs | {"debug": False, "instrumentation_mode": knobs.compilation.instrumentation_mode}
        binder = jit.create_function_from_signature(function.signature, function.params, self.backend)
        bound, specialization, options = binder(*args, **kwargs)
        options, signature, constants, attributes = function._pack_args(
            self.backend, kwargs, bound, specialization, options
        )
        key = f"{function.cache_key} {signature} {constants} {attributes} {options}"
        if key not in self.compiled:
            source = ASTSource(function, signature, constants, attributes)
            self.compiled[key] = self._compile(source, options.__dict__)
        ptx, shared_size = self.compiled[key]
        if ptx not in _translated:
            _translated[ptx] = translate(ptx)
        program = _translated[ptx]
        self.ptx[program.kernel.name] = ptx
        arguments = [_argument(name, value) for name, value in bound.items() if signature[name] != "constexpr"]
        arguments += [0] * (len(program.kernel.params) - len(arguments))  # Triton's scratch memory, which is not used
        size = (*(grid(bound) if callable(grid) else grid), 1, 1)[:3]
        launch(program, size, arguments, shared_size, self.report, self.options)

    def _compile(self, source: ASTSource, options: dict) -> tuple[str, int]:
        with mock.patch.object(knobs.runtime, "add_stages_inspection_hook", _without_ptxas):
            compiled = triton.compile(source, target=self.target, options=options)
        if compiled.metadata.global_scratch_size or compiled.metadata.num_ctas != 1:
            raise NotImplementedError("scratch memory and clusters")
        ptx = compiled.asm["ptx"]
        return self.edit(compiled.metadata.name, ptx) if self.edit else ptx, compiled.metadata.shared


def _without_ptxas(*arguments) -> tuple[str, str] | None:
    """Triton's hook for stages of the compiler. Called without arguments, it returns what to add to the cache key."""
    if not arguments:
        return "-without-ptxas", "without-ptxas"
    stages = arguments[1]
    stages["cubin"] = lambda ptx, metadata: b""
    return None


def _argument(name: str, value: torch.Tensor | float) -> tuple[str, int, int] | float:
    """An argument of `launch`."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.device.type != "cpu":
        raise ValueError(f"{name} must be a CPU tensor, got one on {value.device}")
    elements = sum((length - 1) * stride for length, stride in zip(value.shape, value.stride(), strict=True)) + 1
    return name, value.data_ptr(), elements * value.element_size() if value.numel() else 0


@contextmanager
def active(
    capability: tuple[int, int] = (9, 0),
    seed: int = 0,
    *,
    lockstep: bool = False,
    eager: bool = False,
    strict: bool = True,
    multiprocessors: int = 1,
    edit: Callable[[str, str], str] | None = None,
) -> Iterator[Machine]:
    """Within this context, Triton kernels launched on CPU tensors are compiled for a GPU and executed by the machine.

    Args:
        capability: compute capability of the GPU.
        seed, lockstep, eager: see `Options`.
        strict: whether faults raise MachineError at the end.
        multiprocessors: number that atk's launchers see.
        edit: changes the PTX of a kernel, given its name and PTX; to break it on purpose.
    """
    machine = Machine(capability, Options(seed, lockstep, eager), edit)

    def run(self, *args, grid, warmup, **kwargs):
        machine.run(self, args, grid, kwargs)

    device = atk_launch.Device(capability, multiprocessors, "ptx_machine")
    interpreted = types.SimpleNamespace(environ={"TRITON_INTERPRET": "1"})  # makes the Triton backend available
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(jit.JITFunction, "run", run))
        stack.enter_context(mock.patch.object(availability, "os", interpreted))
        stack.enter_context(mock.patch.object(atk_launch.Device, "of", return_value=device))
        yield machine
    if strict:
        machine.report.check()
