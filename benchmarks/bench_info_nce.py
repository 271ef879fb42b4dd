"""Symmetric InfoNCE of N clips and their captions, forward and backward: all logits held, and streamed.

Operations are those of three products of all pairs, what the logits and the two gradients need; streaming computes the
logits twice, so it spends a third more. The limit is the rate of the library's own matrix product in the same process.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import atk
import harness
from atk.backend import OPS, unavailable
from bench_max_mean import limit

SHAPES = ((8192, 512), (16384, 512))
HELD = 4  # matrices of logits that a loss which holds them has at once, at least


def cross_entropies(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """The loss as a user of PyTorch writes it."""
    logits, target = scale * audio @ text.T, torch.arange(len(audio), device=audio.device)
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def step(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable:
    """Forward and backward: the loss, and the gradients of both sides and the scale."""

    def call(audio, text, scale):
        leaves = [value.detach().requires_grad_() for value in (audio, text, scale)]
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    return call


def run(
    n: int = 8192,
    d: int = 512,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    scale: float = 20.0,
    rounds: int = 7,
) -> list[harness.Row]:
    """Rows of a step for every provider, the speed relative to the backend `"reference"`.

    Args:
        n: clips, and captions; d: channels; scale: of the cosines.
        dtype: of the embeddings, float32, bfloat16 or float16.
        rounds: timed calls of each provider.
    """
    with torch.device(device):
        audio, noise = (torch.randn(n, d) for _ in range(2))
        inputs = *(F.normalize(value, dim=-1).to(dtype) for value in (audio, audio + 3 * noise)), torch.tensor(scale)
    truth = step(lambda *sides: atk.info_nce(*sides, backend="chunked"))(*(value.double() for value in inputs))
    held = HELD * 4 * n * n
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    losses = {f"atk {name}": (lambda *sides, name=name: atk.info_nce(*sides, backend=name)) for name in OPS["info_nce"]}
    missing = {f"atk {name}": unavailable(name, torch.device(device), dtype) for name in OPS["info_nce"]}
    # The reference comes first, so that speeds are relative to it.
    losses = {"atk reference": losses.pop("atk reference"), "two F.cross_entropy": cross_entropies, **losses}
    memory = dict.fromkeys(("atk reference", "two F.cross_entropy"), held)
    providers = [
        harness.Provider(name, step(loss), 6.0 * n * n * d, tolerance, memory.get(name, 0), missing.get(name))
        for name, loss in losses.items()
    ]
    return harness.compare([*providers, limit(dtype, device)], inputs, truth, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=2, type=int, metavar=("N", "D"), help=f"this shape, not all of {SHAPES}")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--scale", type=float, default=20.0, help="of the cosines (20)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each provider (default 7)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    torch.manual_seed(0)
    tables = {}
    for shape in [tuple(args.shape)] if args.shape else SHAPES:
        for dtype in args.dtype:
            title = "Forward and backward, {} pairs, {} channels, {}".format(*shape, dtype)
            tables[title] = run(*shape, getattr(torch, dtype), args.device, args.scale, args.rounds)
            print(harness.markdown(title, tables[title]), flush=True)
    if args.out:
        settings = {"device": args.device, "scale": args.scale, "rounds": args.rounds}
        harness.write(args.out, tables, settings)


if __name__ == "__main__":
    main()
