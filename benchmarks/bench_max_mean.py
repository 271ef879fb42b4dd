"""Max-mean similarity of N clips against N captions: the einsum that a user writes, other libraries, the fused op.

In a forward the einsum keeps nothing for a backward, atk its winners. The limit is the rate of the library's own matrix
product in the same process, and operations are those of the forward's products alone: a step at 0.3 of the limit takes
as long as three ideal forwards.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import atk
import harness
import peers
from atk import backend, reference

TITLES = {
    "forward": "Forward, winners kept for the backward",
    "step": "Forward and backward",
    "ragged_forward": "Forward, winners kept, captions of {shortest} to {lt} tokens, {mean} in the mean",
    "ragged": "Forward and backward, captions of {shortest} to {lt} tokens, {mean} in the mean",
}


def naive(audio: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.einsum("atd,bld->abtl", audio, text)
    if mask is not None:
        scores = scores.masked_fill(~mask[None, :, None], float("-inf"))
    return scores.max(-1).values.mean(-1)


def run(
    n: int = 128,
    la: int = 250,
    lt: int = 32,
    d: int = 128,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    kernels: str | None = None,
    rounds: int = 7,
    kinds: Sequence[str] = tuple(TITLES),
    others: bool = True,
) -> dict[str, list[harness.Row]]:
    """Rows for each of `kinds`: `"forward"`, `"step"` (with the backward), and both on uneven captions with masks.

    Args:
        n: clips and captions; la: frames of a clip; lt: tokens of a caption, at most in `"ragged..."`; d: channels.
        dtype: of the embeddings, float32, bfloat16 or float16.
        kernels: backend of atk; None: `"triton"` on a GPU, `"cpp"` on the CPU.
        rounds: timed calls of each provider.
        others: time `torch.compile` of the einsum and the other libraries too, not only the einsum and atk.
    """
    torch.compiler.reset()  # a limited number of shapes and dtypes would be compiled
    kernels = kernels or ("triton" if device == "cuda" else "cpp")
    with torch.device(device):
        audio, text, grad = embeddings(n, la, d, dtype), embeddings(n, lt, d, dtype), torch.randn(n, n)
        mask = torch.arange(lt) < ragged_lengths(n, lt).to(device)[:, None]
    half = dtype != torch.float32
    # In a half type the einsum rounds every score, which moves winners and with them gradients.
    tolerances = {"naive": 1.0 if half else 1e-4, "fused": 1e-2 if half else 1e-4}
    tables = {}
    for kind in kinds:
        inputs = (audio, text, grad, mask) if "ragged" in kind else (audio, text, grad)
        forward = "forward" in kind
        truth = true_step(*inputs)
        valid = int(mask.sum()) if "ragged" in kind else n * lt
        scores = n * la * valid
        providers = []
        for name, call, tolerance, missing in candidates(kind, device, dtype, kernels, others):
            held = scores * audio.element_size() * (1 if forward else 2) if tolerance == "naive" else 0
            # Ready for a backward the einsum would keep all scores, which nobody times as a forward.
            timed = forward_only(call, winners=tolerance != "naive") if forward else with_backward(call)
            providers.append(harness.Provider(name, timed, 2.0 * scores * d, tolerances[tolerance], held, missing))
        providers.append(limit(dtype, device))
        tables[kind] = harness.compare(providers, inputs, truth[:1] if forward else truth, rounds)
    return tables


def candidates(
    kind: str, device: str, dtype: torch.dtype, kernels: str, others: bool
) -> list[tuple[str, Callable[..., Tensor], str, str | None]]:
    """Who computes the similarity: name, function, class of tolerance, why it cannot run here."""
    missing = backend.unavailable(kernels, torch.device(device), dtype)
    found = [("naive einsum", naive, "naive", None)]
    if others:
        found.append(("torch.compile of the einsum", torch.compile(naive, dynamic=False), "naive", None))
        found += [(name, call, "fused", why) for name, call, why in peers.providers(device, dtype, kind)]

    def fused(**options):
        def call(audio, text, mask=None):
            return atk.max_mean_similarity(audio, text, None, mask, backend=kernels, **options)

        return call

    def varlen(audio, text, mask):
        n, la, _ = audio.shape
        cu_audio = torch.arange(0, (n + 1) * la, la, dtype=torch.int32, device=audio.device)
        cu_text = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
        longest = {"max_seqlen_audio": la, "max_seqlen_text": text.shape[1]}
        return atk.max_mean_similarity_varlen(
            audio.flatten(0, 1), text[mask], cu_audio, cu_text, backend=kernels, **longest
        )

    def unscreened(audio, text, mask=None):
        from atk import _C

        _C.set_screening("never")
        try:
            return atk.max_mean_similarity(audio, text, None, mask, backend=kernels)
        finally:
            _C.set_screening("auto")

    if kernels == "cpp" and "forward" in kind and dtype != torch.bfloat16:  # which is never screened
        found.append(("atk cpp, int8 screening off", unscreened, "fused", missing))
    if "ragged" in kind:
        found.append((f"atk {kernels}, masks", fused(), "fused", missing))
        found.append((f"atk {kernels}, packed", varlen, "fused", missing))
        return found
    found.append((f"atk {kernels}", fused(), "fused", missing))
    if kind == "step":
        found.append((f"atk {kernels}, winners computed again", fused(save_index=False), "fused", missing))
    return found


def embeddings(n: int, length: int, d: int, dtype: torch.dtype) -> Tensor:
    """Normal values on a grid of 1/64: products and sums are exact, so every provider sees the same winners."""
    return (torch.randn(n, length, d) * 64).round().clamp(-255, 255).div(64).to(dtype)


def ragged_lengths(n: int, longest: int) -> Tensor:
    """[n] caption lengths from 6/32 of the longest up, 12/32 of it in the mean: many short, few long."""
    shortest = -(-longest * 6 // 32)
    lengths = (shortest + (longest - shortest) * torch.linspace(0, 1, n, device="cpu") ** (10 / 3)).round().long()
    return lengths[torch.randperm(n, generator=torch.Generator().manual_seed(0), device="cpu")]


def forward_only(similarity, winners: bool):
    def call(audio, text, grad, *mask):
        with torch.set_grad_enabled(winners):
            return (similarity(audio.detach().requires_grad_(), text.detach().requires_grad_(), *mask).detach(),)

    return call


def with_backward(similarity):
    def call(audio, text, grad, *mask):
        audio, text = audio.detach().requires_grad_(), text.detach().requires_grad_()
        sim = similarity(audio, text, *mask)
        sim.backward(grad.to(sim.dtype))
        return sim.detach(), audio.grad, text.grad

    return call


def limit(dtype: torch.dtype, device: str) -> harness.Provider:
    """The library's product of two square matrices, large enough to reach its rate."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    name = f"limit: matmul {size} x {size}"
    return harness.Provider(name, lambda *inputs: (torch.mm(a, b, out=out),), 2.0 * size**3, tolerance=None)


def true_step(audio: Tensor, text: Tensor, grad: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """sim, dL/daudio and dL/dtext in float64, one caption at a time so that it fits where the einsum does not."""
    audio, text = audio.double().requires_grad_(), text.double().requires_grad_()
    sim = torch.empty(grad.shape, dtype=torch.float64, device=grad.device)
    for j in range(len(text)):
        column = reference.max_mean_similarity(audio, text[j : j + 1], None, None if mask is None else mask[j : j + 1])
        column.backward(grad[:, j : j + 1].double())
        sim[:, j : j + 1] = column.detach()
    return sim, audio.grad, text.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=128, help="clips, and captions (default 128)")
    parser.add_argument("--la", type=int, default=250, help="frames of a clip (default 250)")
    parser.add_argument("--lt", type=int, default=32, help="tokens of a caption (default 32)")
    parser.add_argument("--d", type=int, default=128, help="channels (default 128)")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16", "float16"), default=["float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--backend", choices=("cpp", "triton"), help="of atk; default: triton on cuda, cpp on cpu")
    parser.add_argument("--kinds", nargs="+", choices=tuple(TITLES), default=list(TITLES))
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each provider (default 7)")
    parser.add_argument("--alone", action="store_true", help="leave out torch.compile and the other libraries")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    torch.manual_seed(0)
    shape = {"n": args.n, "la": args.la, "lt": args.lt, "d": args.d}
    tables = {}
    for dtype in args.dtype:
        rows = run(
            **shape, dtype=getattr(torch, dtype), device=args.device, kernels=args.backend, rounds=args.rounds,
            kinds=args.kinds, others=not args.alone,
        )  # fmt: skip
        for kind, table in rows.items():
            lengths = ragged_lengths(args.n, args.lt)
            mean = round(lengths.double().mean().item(), 1)
            title = TITLES[kind].format(shortest=int(lengths.min()), lt=args.lt, mean=mean)
            tables[f"{title}, {dtype}"] = table
            print(harness.markdown(f"{title}, {dtype}", table), flush=True)
    if args.out:
        harness.write(args.out, tables, shape | {"device": args.device, "rounds": args.rounds})


if __name__ == "__main__":
    main()
