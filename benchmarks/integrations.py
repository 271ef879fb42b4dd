"""Measure a training step of a multi-vector model in sentence-transformers, with its own scores and with ours.

    python benchmarks/integrations.py --batches 64 256
    python benchmarks/integrations.py --batches 64 256 --clock wall --threads 2    # on an idle machine

Needs sentence-transformers. Each measurement runs in its own process. By default, it counts CPU time on one thread,
which depends less on the load of the machine than elapsed time. The two variants alternate.
"""

import argparse
import importlib.metadata
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from atk.integrations import sentence_transformers as adapter
from atk.integrations.rebinding import import_library
from atk.models.text import train_tokenizer
from experiments import write_results

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
VARIANTS = ("sentence-transformers", "with atk")
WORDS = [a + b for a in "bcdfghklmnpr" for b in ("ad", "eg", "in", "ox", "ump")]
QUERY_TOKENS, DOCUMENT_TOKENS, WIDTH = 32, 300, 128


def create_model(folder: str) -> Any:
    """A BERT of two layers and width 128, with vectors of 128 channels and queries expanded to 32 tokens."""
    transformers = import_library("transformers")
    library = import_library("sentence_transformers.multi_vector_encoder")
    modules = import_library("sentence_transformers.base.modules")
    masks = import_library("sentence_transformers.multi_vector_encoder.modules")
    tokenizer = train_tokenizer(WORDS, 400)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    expansion = {"strategy": "fixed", "attend": False, "length": QUERY_TOKENS}
    dense = modules.Dense(
        WIDTH, WIDTH, bias=False, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"
    )
    parts = [modules.Transformer(folder, query_expansion=expansion), dense, masks.MultiVectorMask()]
    return library.MultiVectorEncoder(modules=[*parts, modules.Normalize("token_embeddings")], device="cpu")


def create_features(model: Any, batch: int) -> list[dict[str, Any]]:
    """Queries of about 20 tokens, expanded to 32, and documents of 300."""
    draw = torch.Generator().manual_seed(0)

    def text(tokens: int) -> str:
        """Random words that take at least `tokens` tokens."""
        words: list[str] = []
        while len(words) < tokens:
            words.append(WORDS[int(torch.randint(len(WORDS), (1,), generator=draw))])
        return " ".join(words)

    queries = model.preprocess([text(9) for _ in range(batch)], task="query")
    documents = model.preprocess([text(DOCUMENT_TOKENS) for _ in range(batch)], task="document")
    for name, value in documents.items():
        if isinstance(value, torch.Tensor):
            documents[name] = value[:, :DOCUMENT_TOKENS]
    assert documents["input_ids"].shape == (batch, DOCUMENT_TOKENS) and documents["attention_mask"].all()
    return [{**queries, "task": "query"}, {**documents, "task": "document"}]


def measure(variant: str, batch: int, steps: int, threads: int, clock: str) -> dict[str, Any]:
    """In a process of its own: seconds of each step after a small one, their losses, and memory in MiB."""
    torch.set_num_threads(threads)
    now = CLOCKS[clock]
    losses = import_library("sentence_transformers.multi_vector_encoder.losses")
    if variant == "with atk":
        adapter.install()
    with tempfile.TemporaryDirectory() as folder:
        model = create_model(folder)
    criterion = losses.MultiVectorMultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    features = create_features(model, batch)
    model.eval()  # without dropout, the losses of both variants can be compared
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, values, scoring = [], [], []
    original = criterion.similarity_fct

    def timed(*args: Any, **options: Any) -> torch.Tensor:
        start = now()
        scores = original(*args, **options)
        scoring.append(now() - start)
        return scores

    criterion.similarity_fct = timed
    for size in [8] + [batch] * steps:
        part = [{name: value if name == "task" else value[:size] for name, value in side.items()} for side in features]
        start = now()
        optimizer.zero_grad()
        loss = criterion(part, None)
        loss.backward()
        optimizer.step()
        seconds.append(now() - start)
        values.append(loss.item())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": seconds[1:],
        "scoring": scoring[1:],
        "losses": values[1:],
        "before_mib": before,
        "peak_mib": peak,
    }


def run_worker(variant: str, batch: int, steps: int, threads: int, clock: str) -> dict[str, Any]:
    options = ["--steps", str(steps), "--threads", str(threads), "--clock", clock]
    command = [sys.executable, __file__, "--worker", variant, str(batch), *options]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def combined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from several processes."""
    row: dict[str, Any] = {
        name: statistics.median(value for run in runs for value in run[name]) for name in ("seconds", "scoring")
    }
    row |= {name: max(run[name] for run in runs) for name in ("before_mib", "peak_mib")}
    return row | {"losses": runs[0]["losses"], "steps": sum(len(run["seconds"]) for run in runs)}


def page(results: dict[str, Any]) -> str:
    about = (
        f"One training step (`MultiVectorMultipleNegativesRankingLoss`, AdamW, float32) of a BERT with two layers and "
        f"width {WIDTH}; queries of {QUERY_TOKENS} tokens, documents of {DOCUMENT_TOKENS}. {_clock(results)}, medians "
        "over processes that alternate between the variants. Memory is the peak of the process, with the "
        'growth during training in parentheses. "Scores" is the forward of the similarity alone.'
    )
    lines = [
        "# sentence-transformers with and without `atk.integrations.sentence_transformers.install()`",
        "",
        about,
        "",
        "| batch | variant | step | scores | peak memory |",
        "|---:|---|---:|---:|---:|",
    ]
    for batch, rows in results["batches"].items():
        for variant in VARIANTS:
            row = rows[variant]
            memory = f"{row['peak_mib']:,.0f} MiB ({row['peak_mib'] - row['before_mib']:,.0f})"
            lines.append(f"| {batch} | {variant} | {row['seconds']:.2f} s | {row['scoring']:.2f} s | {memory} |")
    ratios = (
        f"Batch {batch}: the step is {rows['speedup']:.1f} times as fast, and its growth of memory is divided by "
        f"{rows['memory_ratio']:.1f}."
        for batch, rows in results["batches"].items()
    )
    options = "" if results["clock"] == "cpu" else f" --clock wall --threads {results['threads']}"
    command = f"`python benchmarks/integrations.py --batches {' '.join(results['batches'])}{options}`"
    facts = results["environment"] | {
        "threads": results["threads"],
        "sentence-transformers": results["sentence-transformers"],
    }
    made = f"Made by {command}; {', '.join(f'{name} {value}' for name, value in facts.items())}."
    return "\n".join([*lines, "", *ratios, "", made, ""])


def _clock(results: dict[str, Any]) -> str:
    threads = "one thread" if results["threads"] == 1 else f"{results['threads']} threads"
    return f"{'CPU seconds' if results['clock'] == 'cpu' else 'Elapsed seconds'} on {threads}"


def main() -> None:
    """Write benchmarks/results/integrations.json and .md, or integrations_wall for elapsed time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--steps", type=int, default=1, help="measured steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each variant and batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="CPU time, or elapsed time")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker[0], int(args.worker[1]), args.steps, args.threads, args.clock)))
        return
    version = importlib.metadata.version("sentence-transformers")
    results: dict[str, Any] = {"sentence-transformers": version, "threads": args.threads, "clock": args.clock}
    results["batches"] = {}
    for batch in args.batches:
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for _ in range(args.rounds):
            for variant in VARIANTS:
                runs[variant].append(run_worker(variant, batch, args.steps, args.threads, args.clock))
        theirs, ours = rows = [combined(runs[variant]) for variant in VARIANTS]
        difference = max(abs(a - b) / abs(a) for a, b in zip(theirs["losses"], ours["losses"], strict=True))
        if difference > 1e-3:
            raise SystemExit(f"batch {batch}: the losses differ by a factor of {difference:.1e}")
        growths = [row["peak_mib"] - row["before_mib"] for row in rows]
        results["batches"][str(batch)] = dict(zip(VARIANTS, rows, strict=True)) | {
            "speedup": theirs["seconds"] / ours["seconds"], "memory_ratio": growths[0] / growths[1],
        }  # fmt: skip
    write_results(args.results / ("integrations" if args.clock == "cpu" else "integrations_wall"), results, page, "")


if __name__ == "__main__":
    main()
