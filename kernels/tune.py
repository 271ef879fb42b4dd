"""Autotuner of the max-mean kernels: times launch configurations on a GPU and writes the fastest to a launch table."""

import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from atk.kernels import launch_table
from atk.kernels.launch import Launch
from atk.kernels.max_mean import Problem
from atk.kernels.pack import LengthClass
from atk.kernels.sequences import from_padded, index_dtype
from atk.kernels.weights import slot_weights

# (N_a, N_t, L_a, L_t, D): captions of every length class; within a shape, all have the same length.
SHAPES = tuple((1024, 1024, 256, L_t, D) for L_t in (8, 16, 32, 64, 128) for D in (128, 256, 512))
# Largest allowed difference from the default's result, relative to its largest value: candidates sum the products in
# another order.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass
class Tuned:
    """Result of a tuning run.

    `entries` are the entries of the launch table. `tried` counts the candidates, `failed` those that did not compile or
    needed more resources than the GPU has, and `wrong` those with a wrong result.
    """

    entries: list[launch_table.Entry]
    tried: int = 0
    failed: int = 0
    wrong: int = 0


class _Benchmark(NamedTuple):
    """A kernel launch to time."""

    kernel: str
    problem: Problem
    call: Callable[[], None]
    result: Tensor  # written by `call`


def candidates(kernel: str, D: int, chunked: bool) -> Iterator[Launch]:
    """Launch configurations worth timing for one kernel on rows of D channels."""
    tiles = [channels for channels in (16, 32, 64, 128) if D % channels == 0]
    for frames, warps, stages, registers in product((64, 128), (4, 8), (2, 3, 4), (None, 128, 255)):
        if kernel != "forward":
            yield from (Launch(frames, channels, warps, stages, registers=registers) for channels in tiles[1:])
            continue
        yield from (Launch(frames, channels, warps, stages, False, registers) for channels in tiles)
        if not chunked and D in (32, 64, 128, 256):
            yield Launch(frames, D, warps, stages, True, registers)


def tune(
    shapes: Iterable[tuple[int, int, int, int, int]],
    dtypes: Iterable[torch.dtype],
    out: str | os.PathLike[str],
    *,
    device: str = "cuda",
    repeats: int = 20,
    seconds: float = float("inf"),
    choose: Callable[[str, int, bool], Iterable[Launch]] = candidates,
    report: Callable[[str], object] = print,
) -> Tuned:
    """Times every candidate for every kernel and shape, and writes the fastest to the launch table `out`.

    Candidates that differ least from the default are tried first. The result of each is checked against the default's.
    Candidates that fail to compile, exceed the GPU's resources, or give a wrong result are skipped and counted.

    Args:
        shapes: (N_a, N_t, L_a, L_t, D) of each problem. The last shape of a length class and D overrides earlier ones.
        dtypes: float32, bfloat16, or float16.
        out: path of the table; rewritten after each kernel and shape.
        device: where to run; "cpu" is the Triton interpreter.
        repeats: timed calls per candidate.
        seconds: time budget for each kernel and shape, after which no further candidates are tried.
        choose: `choose(kernel, D, chunked)` gives the candidates.
        report: called with one line for each kernel and shape.
    """
    tuned = Tuned([])
    for shape, dtype in product(shapes, dtypes):
        for kernel, problem, call, result in _benchmarks(shape, dtype, device):
            length_class = problem.captions.classes[0]
            best = problem.launch(kernel, length_class)
            wanted = _run(call, result)
            default_time = best_time = _seconds(call, repeats, device)
            begin = time.monotonic()
            for candidate in _nearest_first(choose(kernel, problem.D, length_class.chunked), best):
                if time.monotonic() - begin > seconds:
                    break
                problem.launches[kernel] = candidate
                if not _matches(call, result, wanted, _TOLERANCE[dtype], tuned):
                    continue
                duration = _seconds(call, repeats, device)
                if duration < best_time:
                    best = candidate
                    best_time = duration
            problem.launches[kernel] = best
            tuned.entries.append(_entry(problem, kernel, dtype, length_class, best))
            report(f"{kernel} {dtype} {shape}: {default_time * 1e3:.3f} ms -> {best_time * 1e3:.3f} ms with {best}")
            launch_table.write(out, tuned.entries)
    return tuned


def _nearest_first(launches: Iterable[Launch], default: Launch) -> list[Launch]:
    """Sorts configurations by how many of their values differ from the default, fewest first, in case time runs out."""
    return sorted(launches, key=lambda launch: sum(map(operator.ne, astuple(launch), astuple(default))))


def _benchmarks(shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str) -> Iterator[_Benchmark]:
    """A benchmark of each kernel on random clips and captions without padding."""
    N_a, N_t, L_a, L_t, D = shape
    generator = torch.Generator(device).manual_seed(0)
    audio, text = (
        from_padded(torch.randn(n, length, D, generator=generator, device=device).to(dtype), None)
        for n, length in ((N_a, L_a), (N_t, L_t))
    )
    problem = Problem(audio, text, pairs=False)
    (group,) = problem.groups(None)
    sim = torch.empty(N_a, N_t, device=device)
    index = torch.empty(N_t, problem.columns, dtype=index_dtype(L_t), device=device)
    yield _Benchmark("forward", problem, partial(problem.forward, group, sim, index), sim)
    grad = torch.randn(N_a, N_t, generator=generator, device=device)
    weights = slot_weights(grad, problem.frames, problem.captions, pairs=False)
    out = audio.rows.new_empty(N_a * L_a, problem.D)
    grad_audio = partial(problem.grad_audio, group, weights, index, None, out, sparse=False, first=True, last=True)
    yield _Benchmark("grad_audio", problem, grad_audio, out)
    out = text.rows.new_empty(1, N_t * L_t, problem.D)
    yield _Benchmark("grad_text", problem, partial(problem.grad_text, group, weights, index, out, sparse=False), out)


def _matches(call: Callable[[], None], result: Tensor, wanted: Tensor, tolerance: float, tuned: Tuned) -> bool:
    """Whether a candidate runs and gives the wanted result; counts it in `tuned`."""
    tuned.tried += 1
    try:
        error = (_run(call, result) - wanted).abs().max()
    except Exception as exception:
        if not _is_failure(exception):
            raise
        tuned.failed += 1
        return False
    if not error <= tolerance * wanted.abs().max():
        tuned.wrong += 1
        return False
    return True


def _is_failure(error: Exception) -> bool:
    """Whether Triton rejected the launch configuration; any other error is a bug."""
    from triton.runtime.errors import TritonError  # also the base class of CompilationError

    return isinstance(error, TritonError) or "PassManager" in str(error)


def _run(call: Callable[[], None], result: Tensor) -> Tensor:
    """A float32 copy of what `call` writes to `result`."""
    result.fill_(float("nan"))
    call()
    return result.to(torch.float32, copy=True)


def _seconds(call: Callable[[], None], repeats: int, device: str) -> float:
    """The median duration in seconds after one warmup call: device time on a GPU, wall time in the interpreter."""
    call()
    times = []
    for _ in range(repeats):
        if device == "cpu":
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def _entry(
    problem: Problem, kernel: str, dtype: torch.dtype, length_class: LengthClass, launch: Launch
) -> launch_table.Entry:
    return {
        "gpu": problem.device.name,
        "kernel": kernel,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": length_class.tokens,
        "chunked": length_class.chunked,
        "D": problem.D,
        "launch": {name: value for name, value in asdict(launch).items() if value is not None},
    }
