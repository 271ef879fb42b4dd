"""Cross-attention difference of N inputs and their references: `nn.MultiheadAttention` plus the mask, and the fused op.

A step is forward and backward of the whole block, input projections included, with one set of weights and a key mask.
Operations are those of the projections and the attention, three times the forward's; the limit is the rate of the
library's own matrix product in the same process.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import atk
import harness
from atk.backend import OPS, unavailable
from bench_max_mean import limit

SHAPES = {"short": (32, 93, 768, 12), "long": (4, 2048, 256, 4)}  # N, L, D, heads


def eager(attention: nn.MultiheadAttention, need_weights: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The block as a user of PyTorch writes it."""

    def call(frames, reference, mask):
        similar, _ = attention(frames, reference, reference, key_padding_mask=~mask, need_weights=need_weights)
        return (1 - torch.sigmoid(similar)) * frames

    return call


def step(block: Callable, module: nn.Module) -> Callable:
    """Forward and backward: the result, and the gradients of input, reference and all weights."""

    def call(frames, reference, mask, grad):
        frames, reference = frames.detach().requires_grad_(), reference.detach().requires_grad_()
        out = block(frames, reference, mask)
        module.zero_grad(set_to_none=True)
        out.backward(grad)
        return out.detach(), frames.grad, reference.grad, *(weight.grad for weight in module.parameters())

    return call


def run(
    n: int = 32,
    length: int = 93,
    d: int = 768,
    heads: int = 12,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    rounds: int = 7,
    compiled: bool = True,
    shortest: float = 0.5,
) -> list[harness.Row]:
    """Rows of a step for every provider, the speed relative to `nn.MultiheadAttention(need_weights=False)`.

    Args:
        n: inputs, each with a reference; length: frames of both, of a reference at most; d: channels; heads: of D.
        dtype: of frames and weights, float32, bfloat16 or float16.
        rounds: timed calls of each provider.
        compiled: time `torch.compile` of the first provider too.
        shortest: valid share of the shortest reference; the others lie evenly between it and the whole length.
    """
    torch.compiler.reset()
    attention = nn.MultiheadAttention(d, heads, batch_first=True, device=device, dtype=dtype)
    nn.init.normal_(attention.in_proj_bias, std=0.1)
    with torch.device(device):
        frames, reference, grad = (torch.randn(n, length, d).to(dtype) for _ in range(3))
        mask = torch.arange(length) < torch.linspace(shortest * length, length, n).long()[:, None]
    precise = copy.deepcopy(attention).double()
    inputs = frames, reference, mask, grad
    truth = step(eager(precise, False), precise)(frames.double(), reference.double(), mask, grad.double())
    blocks = {"nn.MultiheadAttention, need_weights=False": eager(attention, False)}
    blocks["nn.MultiheadAttention, default call"] = eager(attention, True)
    if compiled:
        blocks["torch.compile of the first"] = torch.compile(eager(attention, False), dynamic=False)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    flops = 6.0 * n * length * d * (4 * d + 2 * length)
    providers = [harness.Provider(name, step(block, attention), flops, tolerance) for name, block in blocks.items()]
    for backend in OPS["cross_attention_difference"]:
        block = atk.nn.CrossAttentionDifference.from_multihead_attention(attention, backend)
        missing = unavailable(backend, torch.device(device), dtype)
        providers.append(harness.Provider(f"atk {backend}", step(block, block), flops, tolerance, missing=missing))
    return harness.compare([*providers, limit(dtype, device)], inputs, truth, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(SHAPES), help=f"{SHAPES}: N L D H")
    parser.add_argument("--shape", nargs=4, type=int, metavar=("N", "L", "D", "H"), help="this shape instead")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--shortest", type=float, default=0.5, help="valid share of the shortest reference (0.5)")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each provider (default 7)")
    parser.add_argument("--alone", action="store_true", help="leave out torch.compile")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    torch.manual_seed(0)
    tables = {}
    for shape in [tuple(args.shape)] if args.shape else [SHAPES[name] for name in args.shapes]:
        for dtype in args.dtype:
            title = "Forward and backward, batch {}, {} frames, {} channels, {} heads".format(*shape)
            title += f", references {100 * args.shortest:.0f} to 100 % valid, {dtype}"
            options = {"device": args.device, "rounds": args.rounds, "compiled": not args.alone}
            tables[title] = run(*shape, dtype=getattr(torch, dtype), shortest=args.shortest, **options)
            print(harness.markdown(title, tables[title]), flush=True)
    if args.out:
        harness.write(args.out, tables, {"device": args.device, "shortest": args.shortest, "rounds": args.rounds})


if __name__ == "__main__":
    main()
