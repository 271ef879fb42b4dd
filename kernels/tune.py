"""The tuner: times launch numbers of the max-mean kernels on a GPU, writes the table that overrides the heuristics."""

import operator
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import product
from statistics import median

import torch
from torch import Tensor

from atk.kernels import launch_table
from atk.kernels.launch import Launch
from atk.kernels.max_mean import Problem
from atk.kernels.pack import LengthClass
from atk.kernels.sequences import from_padded, index_dtype
from atk.kernels.weights import pair_weights

# N_a, N_t, L_a, L_t, D: captions of each length class, all of equal length.
SHAPES = tuple((1024, 1024, 256, L_t, D) for L_t in (8, 16, 32, 64, 128) for D in (128, 256, 512))
# The largest difference from the heuristic's result, relative to the largest value: products are added in other orders.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@dataclass
class Tuned:
    """Entries of the table; candidates tried, without a result (not compiled, out of resources), and wrong."""

    entries: list[dict]
    tried: int = 0
    failed: int = 0
    wrong: int = 0


def candidates(kernel: str, D: int, chunked: bool) -> Iterator[Launch]:
    """Launch numbers worth timing for one kernel on rows packed to D channels."""
    tiles = [channels for channels in (16, 32, 64, 128) if D % channels == 0]
    for frames, warps, stages in product((64, 128), (4, 8), (2, 3, 4)):
        if kernel != "forward":
            yield from (Launch(frames, channels, warps, stages) for channels in tiles[1:])
            continue
        yield from (Launch(frames, channels, warps, stages, stationary=False) for channels in tiles)
        if not chunked and D in (32, 64, 128, 256):
            yield Launch(frames, D, warps, stages, stationary=True)


def tune(
    shapes: Iterable[tuple[int, int, int, int, int]],
    dtypes: Iterable[torch.dtype],
    out: str | os.PathLike,
    *,
    device: str = "cuda",
    repeats: int = 20,
    seconds: float = float("inf"),
    choose: Callable[[str, int, bool], Iterable[Launch]] = candidates,
    report: Callable[[str], None] = print,
) -> Tuned:
    """Times every candidate for every kernel at shapes (N_a, N_t, L_a, L_t, D) and writes the fastest to `out`.

    Each candidate's result is checked against that of the usual launch numbers. One that does not compile, needs more
    than the GPU has, or computes something else is skipped and counted. After `seconds` a kernel and shape get no
    further candidates. `choose(kernel, D, chunked)` gives the candidates; `report` takes a line for each kernel and
    shape, and `out` is written after each. A later shape of the same classes overrides. Candidates that differ from the
    usual numbers in fewest places come first.
    """
    tuned = Tuned([])
    for shape, dtype in product(shapes, dtypes):
        for kernel, problem, call, result in _kernels(shape, dtype, device):
            kind = problem.captions.classes[0]
            best, wanted = problem.launch(kernel, kind), _run(call, result)
            shortest = usual = _seconds(call, repeats, device)
            begin = time.monotonic()
            for candidate in _nearest_first(choose(kernel, problem.D, kind.chunked), best):
                if time.monotonic() - begin > seconds:
                    break
                problem.launches[kernel] = candidate
                taken = _try(call, result, wanted, _TOLERANCE[dtype], repeats, device, tuned)
                if taken is not None and taken < shortest:
                    best, shortest = candidate, taken
            problem.launches[kernel] = best
            tuned.entries.append(_entry(problem, kernel, dtype, kind, best))
            report(f"{kernel} {dtype} {shape}: {usual * 1e3:.3f} ms -> {shortest * 1e3:.3f} ms with {best}")
            launch_table.write(out, tuned.entries)
    return tuned


def _nearest_first(launches: Iterable[Launch], usual: Launch) -> list[Launch]:
    """Ordered by how many numbers differ from the usual ones, should the time run out."""
    return sorted(launches, key=lambda launch: sum(map(operator.ne, astuple(launch), astuple(usual))))


def _kernels(shape: tuple[int, ...], dtype: torch.dtype, device: str):
    """Name, problem, call and result tensor of each kernel, on random captions and clips of equal lengths."""
    N_a, N_t, L_a, L_t, D = shape
    generator = torch.Generator(device).manual_seed(0)
    audio, text = (
        from_padded(torch.randn(n, length, D, generator=generator, device=device).to(dtype), None)
        for n, length in ((N_a, L_a), (N_t, L_t))
    )
    problem = Problem(audio, text, pairs=False)
    (group,) = problem.groups(None)
    sim = torch.empty(N_a, N_t, device=device)
    index = torch.empty(N_t, N_a * L_a, dtype=index_dtype(L_t), device=device)
    yield "forward", problem, partial(problem.forward, group, sim, index), sim
    weights = pair_weights(
        torch.randn(N_a, N_t, generator=generator, device=device), problem.frames, problem.captions, False
    )
    ends = {"carry": None, "sparse": False, "first": True, "last": True}
    out = audio.rows.new_empty(N_a * L_a, problem.D)
    yield "grad_audio", problem, partial(problem.grad_audio, group, weights, index, out=out, **ends), out
    out = text.rows.new_empty(1, N_t * L_t, problem.D)
    yield "grad_text", problem, partial(problem.grad_text, group, weights, index, out, False), out


def _try(
    call, result: Tensor, wanted: Tensor, tolerance: float, repeats: int, device: str, tuned: Tuned
) -> float | None:
    """Seconds of one candidate, or None where it fails or is wrong, which is counted."""
    tuned.tried += 1
    try:
        error = (_run(call, result) - wanted).abs().max()
    except Exception as problem:
        if not _is_failure(problem):
            raise
        tuned.failed += 1
        return None
    if not error <= tolerance * wanted.abs().max():
        tuned.wrong += 1
        return None
    return _seconds(call, repeats, device)


def _is_failure(error: Exception) -> bool:
    """Whether Triton refused the launch numbers; anything else is a bug."""
    from triton.runtime.errors import TritonError  # also the base of CompilationError

    return isinstance(error, TritonError) or "PassManager" in str(error)


def _run(call, result: Tensor) -> Tensor:
    result.fill_(float("nan"))
    call()
    return result.to(torch.float32, copy=True)


def _seconds(call, repeats: int, device: str) -> float:
    """The median duration, after one call to warm up: device time on a GPU, wall time in the interpreter."""
    call()
    times = []
    for _ in range(repeats):
        if device == "cpu":
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def _entry(problem: Problem, kernel: str, dtype: torch.dtype, kind: LengthClass, launch: Launch) -> dict:
    numbers = {name: value for name, value in asdict(launch).items() if value is not None}
    return {
        "gpu": problem.device.name,
        "kernel": kernel,
        "dtype": str(dtype).removeprefix("torch."),
        "tokens": kind.tokens,
        "chunked": kind.chunked,
        "D": problem.D,
        "launch": numbers,
    }
