"""Max-mean similarity of N clips against N captions on the CPU: the einsum that a user writes against the fused op."""

import argparse
from pathlib import Path

import harness
import torch
from torch import Tensor

import atk
from atk import backend, reference

TITLES = {"forward": "Forward", "step": "Forward and backward"}


def naive(audio: Tensor, text: Tensor) -> Tensor:
    return torch.einsum("atd,bld->abtl", audio, text).max(-1).values.mean(-1)


def fused(audio: Tensor, text: Tensor) -> Tensor:
    return atk.max_mean_similarity(audio, text, backend="cpp")


def run(
    n: int = 128, la: int = 250, lt: int = 32, d: int = 128, dtype: torch.dtype = torch.float32, rounds: int = 7
) -> dict[str, list[harness.Row]]:
    """Rows for the forward alone (key `"forward"`) and for the forward and backward (key `"step"`).

    Args:
        n: clips and captions; la: frames of a clip; lt: tokens of a caption; d: channels.
        dtype: of the embeddings, float32, bfloat16 or float16.
        rounds: timed calls of each provider.
    """
    audio, text, grad = embeddings(n, la, d, dtype), embeddings(n, lt, d, dtype), torch.randn(n, n)
    scores = n * n * la * lt
    flops = {"forward": 2.0 * scores * d, "step": 2.0 * scores * d + 4.0 * n * n * la * d}
    missing = backend.unavailable("cpp", audio.device, dtype)
    half = dtype != torch.float32
    truth = true_step(audio, text, grad)
    tables = {}
    for kind in TITLES:
        wrap = without_grad if kind == "forward" else with_grad
        copies = 1 if kind == "forward" else 2  # autograd holds the scores and their gradient at once
        tables[kind] = harness.compare(
            [
                # In a half type the einsum rounds every score, which moves winners and with them gradients.
                harness.Provider(
                    "naive einsum",
                    wrap(naive),
                    flops[kind],
                    tolerance=1.0 if half else 1e-4,
                    needs_bytes=copies * scores * audio.element_size(),
                ),
                harness.Provider(
                    "atk cpp", wrap(fused), flops[kind], tolerance=1e-2 if half else 1e-4, missing=missing
                ),
                harness.Provider("limit: matmul of the forward", matmul(d), flops["forward"], tolerance=None),
            ],
            (audio, text, grad),
            truth[:1] if kind == "forward" else truth,
            rounds,
        )
    return tables


def embeddings(n: int, length: int, d: int, dtype: torch.dtype) -> Tensor:
    """Normal values on a grid of 1/64: products and sums are exact, so every provider sees the same winners."""
    return (torch.randn(n, length, d) * 64).round().clamp(-255, 255).div(64).to(dtype)


def without_grad(similarity):
    @torch.no_grad()
    def call(audio, text, grad):
        return (similarity(audio, text),)

    return call


def with_grad(similarity):
    def call(audio, text, grad):
        audio, text = audio.detach().requires_grad_(), text.detach().requires_grad_()
        sim = similarity(audio, text)
        sim.backward(grad.to(sim.dtype))
        return sim.detach(), audio.grad, text.grad

    return call


def matmul(d: int):
    """The same products as one matrix multiplication by the library, in pieces that fit the cache."""

    @torch.no_grad()
    def call(audio, text, grad):
        frames, tokens = audio.view(-1, d), text.view(-1, d).T
        out = frames.new_empty(min(4096, len(frames)), tokens.shape[1])
        for piece in frames.split(len(out)):
            torch.mm(piece, tokens, out=out[: len(piece)])
        return (out,)

    return call


def true_step(audio: Tensor, text: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sim, dL/daudio and dL/dtext in float64, one caption at a time so that it fits where the einsum does not."""
    audio, text = audio.double().requires_grad_(), text.double().requires_grad_()
    sim = torch.empty(grad.shape, dtype=torch.float64)
    for j in range(len(text)):
        column = reference.max_mean_similarity(audio, text[j : j + 1])
        column.backward(grad[:, j : j + 1].double())
        sim[:, j : j + 1] = column.detach()
    return sim, audio.grad, text.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=128, help="clips, and captions (default 128)")
    parser.add_argument("--la", type=int, default=250, help="frames of a clip (default 250)")
    parser.add_argument("--lt", type=int, default=32, help="tokens of a caption (default 32)")
    parser.add_argument("--d", type=int, default=128, help="channels (default 128)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each provider (default 7)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    torch.manual_seed(0)
    shape = {"n": args.n, "la": args.la, "lt": args.lt, "d": args.d}
    rows = run(**shape, dtype=getattr(torch, args.dtype), rounds=args.rounds)
    tables = {TITLES[kind]: table for kind, table in rows.items()}
    for title, table in tables.items():
        print(harness.markdown(title, table))
    if args.out:
        harness.write(args.out, tables, shape | {"dtype": args.dtype, "rounds": args.rounds})


if __name__ == "__main__":
    main()
