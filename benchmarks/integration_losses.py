"""Measure what each library of atk.integrations computes with its own code and with ours, on the CPU.

    python benchmarks/integration_losses.py                        # the libraries that are installed
    python benchmarks/integration_losses.py open_clip colpali      # only these; the table keeps the other rows

Inputs are random embeddings, so that the time is that of the loss or of the scores, without encoders. Each measurement
runs in its own process; the two variants alternate.
"""

import argparse
import importlib
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atk.integrations.rebinding import import_library
from atk.nn import AlignedContrastiveLoss
from experiments import write_results
from harness.memory import peak_bytes

WIDTH = 128


class Case(NamedTuple):
    """What is measured: `create` returns a function that gives a tensor, and the leaves of its gradient."""

    package: str
    about: str
    create: Callable[..., tuple[Callable[[], Tensor], list[Tensor]]]
    ours: bool = False  # the library has no such loss: `create` takes a backend, and an einsum stands for its own code


def embeddings(*shape: int, train: bool = True) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).requires_grad_(train)


def open_clip() -> tuple[Callable[[], Tensor], list[Tensor]]:
    factory = import_library("open_clip.factory")
    options = {"distill": False, "model": "ViT-B-32", "siglip": False, "local_loss": False, "gather_with_grad": False}
    arguments = argparse.Namespace(**options, rank=0, world_size=1, horovod=False)
    criterion = factory.create_loss(arguments)
    inputs = [embeddings(8192, 512), embeddings(8192, 512), torch.tensor(14.3, requires_grad=True)]
    return lambda: criterion(*inputs), inputs


def colpali() -> tuple[Callable[[], Tensor], list[Tensor]]:
    criterion = import_library("colpali_engine.loss.late_interaction_losses").ColbertPairwiseCELoss()
    inputs = [embeddings(32, 32, WIDTH), embeddings(32, 1030, WIDTH)]
    return lambda: criterion(*inputs), inputs


def transformers_retrieval() -> tuple[Callable[[], Tensor], list[Tensor]]:
    cls = import_library("transformers.models.colpali.processing_colpali").ColPaliProcessor
    processor = cls.__new__(cls)
    queries, pages = list(embeddings(64, 32, WIDTH, train=False)), list(embeddings(512, 1030, WIDTH, train=False))
    return lambda: processor.score_retrieval(queries, pages), []


def late_interaction_kernels() -> tuple[Callable[[], Tensor], list[Tensor]]:
    scorer = import_library("late_interaction_kernels").MaxSimScorer()
    inputs = [embeddings(128, 32, WIDTH), embeddings(128, 300, WIDTH)]
    return lambda: _in_batch(scorer(*inputs)), inputs


def colbert() -> tuple[Callable[[], Tensor], list[Tensor]]:
    modeling = import_library("colbert.modeling.colbert")
    model = type("Model", (), {"colbert_config": modeling.ColBERTConfig(nway=2), "use_gpu": False})()
    model.score = lambda *arguments: modeling.colbert_score(*arguments, config=model.colbert_config)
    queries, documents = embeddings(64, 32, WIDTH), embeddings(128, 180, WIDTH)
    mask = torch.ones(128, 180, 1, dtype=torch.bool)
    return lambda: modeling.ColBERT.compute_ib_loss(model, queries, documents, mask), [queries, documents]


def pylate() -> tuple[Callable[[], Tensor], list[Tensor]]:
    scores = import_library("pylate.scores")
    inputs = [embeddings(128, 32, WIDTH), embeddings(128, 300, WIDTH)]
    return lambda: _in_batch(scores.colbert_scores(*inputs)), inputs


def mteb() -> tuple[Callable[[], Tensor], list[Tensor]]:
    functions = import_library("mteb.similarity_functions")
    queries, documents = embeddings(100, 32, WIDTH, train=False), embeddings(1000, 300, WIDTH, train=False)
    return lambda: functions.max_sim(queries, documents), []


def grad_cache(backend: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    adapter = importlib.import_module("atk.integrations.grad_cache")
    criterion = adapter.AlignedLoss(AlignedContrastiveLoss(backend=backend))
    inputs = [embeddings(128, 251, WIDTH), embeddings(128, 33, WIDTH)]
    return lambda: criterion(*inputs), inputs


def transformers(backend: str) -> tuple[Callable[[], Tensor], list[Tensor]]:
    library = import_library("transformers")
    adapter = importlib.import_module("atk.integrations.transformers")
    audio = {"depths": [1, 1, 1, 1], "patch_embeds_hidden_size": 32, "hidden_size": 256, "num_attention_heads": [2] * 4}
    text = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    clap = library.ClapModel(library.ClapConfig(audio_config=audio, text_config=text, projection_dim=WIDTH)).eval()
    criterion = AlignedContrastiveLoss(0.07, backend=backend)
    model = adapter.AlignedClap(clap, criterion)
    inputs = {
        "input_features": torch.randn(64, 1, 1001, 64),
        "input_ids": torch.randint(3, 5000, (64, 32)),
        "attention_mask": torch.ones(64, 32, dtype=torch.long),
    }
    return lambda: model(**inputs)["loss"], [weight for weight in model.parameters() if weight.requires_grad]


CASES = {
    "transformers": Case(
        "transformers",
        "`AlignedClap`, a ClapModel with 5 layers and an einsum for the loss; 64 clips, step",
        transformers,
        True,
    ),
    "open_clip": Case("open_clip_torch", "`ClipLoss`, 8,192 pairs, width 512; loss and gradients", open_clip),
    "colpali": Case(
        "colpali-engine", "`ColbertPairwiseCELoss`, 32 queries, 32 pages of 1,030 patches; loss and gradients", colpali
    ),
    "transformers_retrieval": Case(
        "transformers", "`score_retrieval`, 64 queries, 512 pages of 1,030 patches; scores", transformers_retrieval
    ),
    "late_interaction_kernels": Case(
        "late-interaction-kernels",
        "`MaxSimScorer`, 128 x 128, 300 tokens; loss and gradients",
        late_interaction_kernels,
    ),
    "colbert": Case(
        "colbert-ai", "`compute_ib_loss`, 64 queries, 128 passages of 180 tokens; loss and gradients", colbert
    ),
    "pylate": Case("pylate", "`colbert_scores`, 128 x 128, 300 tokens; loss and gradients", pylate),
    "mteb": Case("mteb", "`max_sim`, 100 queries, 1,000 documents of 300 tokens; scores", mteb),
    "grad_cache": Case(
        "torch",
        "`AlignedLoss` and the same loss by an einsum, 128 pairs, 250 frames; loss and gradients",
        grad_cache,
        True,
    ),
}  # queries and captions have 32 tokens


def _in_batch(scores: Tensor) -> Tensor:
    """The contrastive loss of the libraries whose scores are measured: the documents of the others are negatives."""
    return F.cross_entropy(scores, torch.arange(len(scores)))


def measure(name: str, with_atk: bool, threads: int, repeats: int) -> dict[str, Any]:
    """In a process of its own: seconds of each call after the first, the memory of a call, and its result."""
    torch.set_num_threads(threads)
    adapter = importlib.import_module(f"atk.integrations.{name}")
    if with_atk and hasattr(adapter, "install"):
        adapter.install()
    torch.manual_seed(0)
    case = CASES[name]
    forward, leaves = case.create("auto" if with_atk else "reference") if case.ours else case.create()
    gradients: tuple[Tensor, ...] = ()

    def call() -> None:
        nonlocal gradients
        value = forward()
        gradients = torch.autograd.grad(value, leaves) if leaves else (value,)

    call()
    sums = [value.double().norm().item() for value in gradients]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    gradients = ()
    memory = peak_bytes(call, (), torch.device("cpu")) / 2**20
    return {"seconds": seconds, "mib": memory, "norms": sums}


def compared(name: str, threads: int, repeats: int, rounds: int) -> dict[str, Any]:
    """Both variants of a case, in processes that alternate; an error if their results differ."""
    runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(rounds):
        for with_atk, measured in runs.items():
            options = ["--threads", str(threads), "--repeats", str(repeats)]
            command = [sys.executable, __file__, "--worker", name, str(int(with_atk)), *options]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            measured.append(json.loads(result.stdout.splitlines()[-1]))
    pairs = zip(runs[False][0]["norms"], runs[True][0]["norms"], strict=True)
    error = max(abs(theirs - ours) / max(abs(theirs), 1e-6) for theirs, ours in pairs)
    if error > 1e-3:
        raise SystemExit(f"{name}: the results with and without atk differ by a factor of {error:.1e}")
    row: dict[str, Any] = {"version": importlib.metadata.version(CASES[name].package), "calls": repeats * rounds}
    for with_atk, label in ((False, "library"), (True, "atk")):
        mine = runs[with_atk]
        row[label] = {
            "seconds": statistics.median(value for run in mine for value in run["seconds"]),
            "mib": statistics.median(run["mib"] for run in mine),
        }
    return row


def page(results: dict[str, Any]) -> str:
    about = (
        f"Random embeddings of width {WIDTH} in float32, queries and captions of 32 tokens, on {results['threads']} "
        "threads of a CPU. Elapsed time, medians over the calls in processes that alternate between the variants. "
        "Memory is the peak of one call beyond what was there before it."
    )
    lines = [
        "# Losses and scores of other libraries with and without `atk.integrations`",
        "",
        about,
        "",
        "| library | what | calls | time, library | with atk | ratio | memory, library | with atk |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in results["rows"].items():
        theirs, ours = row["library"], row["atk"]
        times = f"{1000 * theirs['seconds']:,.0f} ms | {1000 * ours['seconds']:,.0f} ms"
        memory = f"{theirs['mib']:,.0f} MiB | {ours['mib']:,.0f} MiB"
        package = f"{CASES[name].package} {row['version']}"
        ratio = f"{theirs['seconds'] / ours['seconds']:.1f}"
        lines.append(f"| {package} | {CASES[name].about} | {row['calls']} | {times} | {ratio} | {memory} |")
    facts = ", ".join(f"{name} {value}" for name, value in results["environment"].items())
    made = f"Made by `python benchmarks/integration_losses.py`; the last row that was measured: {facts}."
    return "\n".join([*lines, "", made, ""])


def main() -> None:
    """Write benchmarks/results/integration_losses.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"modules of atk.integrations: {', '.join(CASES)}; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="measured calls of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each variant")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker[0], args.worker[1] == "1", args.threads, args.repeats)))
        return
    unknown = set(args.names) - CASES.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    stem = args.results / "integration_losses"
    rows = json.loads(stem.with_suffix(".json").read_text())["rows"] if stem.with_suffix(".json").is_file() else {}
    for name in args.names or CASES:
        try:
            importlib.metadata.version(CASES[name].package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name}: {CASES[name].package} is not installed", file=sys.stderr)
            continue
        rows[name] = compared(name, args.threads, args.repeats, args.rounds)
        ordered = {name: rows[name] for name in CASES if name in rows}
        write_results(stem, {"threads": args.threads, "rows": ordered}, page, "")


if __name__ == "__main__":
    main()
