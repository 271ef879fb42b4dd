"""The checks of `gpu.sh` in Python: every kernel against the reference, and estimated against measured clocks.

python benchmarks/gpu_checks.py check|clocks --help
"""

import argparse
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

import gpu_kit
from atk.bench import sizes
from atk.cli import doctor
from atk.kernels.pipes import Clocks
from atk.ops.backend import BACKENDS, KERNEL_DTYPES

HOPPER = (9, 0), 132  # whose clocks a run without a GPU estimates


def check() -> None:
    """`atk doctor --check`, with a process per op and dtype, because compiling the kernels takes most of the time."""
    jobs = list(itertools.product(BACKENDS, KERNEL_DTYPES))
    failed = False
    printed = set()
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        for line, right in itertools.chain.from_iterable(pool.map(_checked, jobs)):
            failed = failed or not right
            if line not in printed:  # all have the same headings
                print(line, flush=True)
            printed.add(line)
    if failed:
        raise SystemExit("failed")


def _checked(job: tuple[str, torch.dtype]) -> list[tuple[str, bool]]:
    op, dtype = job
    return list(doctor.checks([op], [dtype]))


def clocks(tiny: bool, device: torch.device) -> None:
    """Print the clocks of a tile of the max-mean kernels: of the busiest pipe by the machine code, and as measured."""
    capability, multiprocessors = HOPPER
    megahertz, measured = None, {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability, multiprocessors = (properties.major, properties.minor), properties.multi_processor_count
        megahertz = _highest_clock()
        step = gpu_kit.step_of("max_mean_similarity", tiny, device)
        measured = {name: ms for ms, name, _ in gpu_kit.profiled(step, device)}
    size = "tiny" if tiny else gpu_kit.STEPS["max_mean_similarity"][0]
    print(f"{size}, bfloat16, at {megahertz or 'unknown'} MHz, the highest clock of the multiprocessors")
    row = "{:<12} {:<8} {:>16} {:>16} {:>12}"
    print(row.format("kernel", "pipe", "estimated clocks", "measured clocks", "measured ms"))
    for kernel, estimated, tiles in _estimates(sizes.PAIRS[size], capability, multiprocessors):
        pipe = "-" if estimated is None else estimated.busiest
        estimate = "-" if estimated is None else getattr(estimated, pipe)
        ms = measured.get(f"{kernel}_kernel")
        actual = "-" if ms is None or megahertz is None else f"{ms * 1e3 * megahertz * multiprocessors / tiles:.0f}"
        print(row.format(kernel, pipe, estimate, actual, "-" if ms is None else f"{ms:.3f}"))


def _estimates(
    shape: sizes.Pairs, capability: tuple[int, int], multiprocessors: int
) -> Iterator[tuple[str, Clocks | None, int]]:
    """Kernel, clocks of a tile (None if the rates of this GPU are not known), and tiles of a call without masks."""
    from atk.kernels.compile import compile_case
    from atk.kernels.compile_signatures import MAX_MEAN_KERNELS, Case
    from atk.kernels.launch import Device, cdiv, max_mean_launch, next_power_of_two
    from atk.kernels.sequences import packed_width, tile_width

    dtype = torch.bfloat16
    tokens, D = max(8, next_power_of_two(shape.tokens)), packed_width(shape.channels)
    for kernel in MAX_MEAN_KERNELS:
        compiled, _ = compile_case(Case(kernel, dtype, tokens, shape.channels, masks=False), capability)
        launch = max_mean_launch(kernel, dtype, tokens, False, D, Device(capability, multiprocessors))
        text_tiles = cdiv(shape.captions * tokens, tile_width(dtype))
        parts = 1 if kernel == "forward" else D // launch.channels  # a tile of the forward has all channels
        tiles = shape.clips * cdiv(shape.frames, launch.frames) * text_tiles * parts
        yield kernel, compiled.clocks, tiles


def _highest_clock() -> int | None:
    """Of the multiprocessors, in MHz."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return int(answer[0]) if answer and answer[0].isdigit() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("check", "clocks"))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    if options.what == "check":
        check()
    else:
        clocks(options.tiny, torch.device(options.device))


if __name__ == "__main__":
    main()
