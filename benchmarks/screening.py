"""Measure how much int8 screening speeds up the max-mean forward, on each instruction set of this CPU that screens.

python benchmarks/screening.py
"""

import statistics
import time

import torch

import atk
from atk.kernels import cpp

ROUNDS = 7


def seconds(audio: torch.Tensor, text: torch.Tensor, screening: str) -> float:
    """Time of one forward with saved winners."""
    cpp._C.set_screening(screening)
    start = time.perf_counter()
    atk.max_mean_similarity(audio, text, backend="cpp")
    return time.perf_counter() - start


def main() -> None:
    """Prints ratios of medians; calls with and without screening take turns."""
    print(f"threads: {torch.get_num_threads()}")
    for isa in cpp._C.available_isas():
        cpp._C.set_isa(isa)
        for D in (128, 768):
            audio, text = torch.randn(128, 250, D, requires_grad=True), torch.randn(128, 32, D)
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                inputs = audio.to(dtype), text.to(dtype)
                pairs = [[seconds(*inputs, mode) for mode in ("never", "auto")] for _ in range(ROUNDS + 1)][1:]
                never, auto = (statistics.median(column) for column in zip(*pairs, strict=True))
                print(f"{isa:12s} D = {D} {str(dtype).removeprefix('torch.'):9s} {never / auto:.2f}")


if __name__ == "__main__":
    main()
