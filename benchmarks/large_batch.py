"""Measure aligned training by batch size, with the fused op and the einsum, with and without gradient caching.

python benchmarks/large_batch.py                   # every series until it fails, then profiles
python benchmarks/large_batch.py --parts profile   # measure only the profile again
"""

import argparse
import itertools
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from atk.bench import environment
from atk.data.captions import read_split
from atk.models.clap import CLAP, ModelConfig
from atk.ops.max_mean_op import INDEX_BUDGET
from experiments import flags, run_atk, write_results
from large_batch_page import draw, render_page

SERIES = {  # name: backend, and whether gradients are cached
    "fused, cached": ("cpp", True),
    "naive, cached": ("reference", True),
    "fused, at once": ("cpp", False),
    "naive, at once": ("reference", False),
}
BATCHES = (256, 512, 1024, 2048, 4096)
RUN = {
    "device": "cpu", "precision": "fp32", "workers": 1, "clip_seconds": 4.0, "log_every": 1, "save_every": 10**6,
    "eval_every": 0, "seed": 0,
}  # fmt: skip
SCENES = {"preset": "medium", "seconds": [4.0, 4.0], "val": 0, "test": 0, "seed": 1}
SAMPLING = 0.25  # seconds between samples of a run's memory
SAME_LOSS = 1e-4  # largest relative difference between the losses of two backends


@dataclass
class Row:
    """One run, with memory in MiB. Status: ok, wrong, out of memory, failed, or not tried (a smaller batch failed)."""

    series: str
    batch: int
    status: str = "ok"
    note: str = ""
    loss: float | None = None  # of the first step
    step_seconds: list[float] = field(default_factory=list)  # without the first step
    peak: float | None = None  # of the trainer's process, according to its own log
    peak_by_system: float | None = None  # of the same process, according to the system's high-water mark
    peak_with_workers: float | None = None  # of the trainer and its workers, shared pages counted once; sampled


def run_limited(command: Sequence[str], log: Path, limit: int) -> tuple[int, float, float]:
    """Run a command with a limit of `limit` bytes of private memory per process; allocations beyond it fail.

    Returns:
        Exit code, peak resident memory of the process, and peak of the process with its children, in MiB.
    """

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    process_kib = family_kib = 0
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=set_limit)  # noqa: PLW1509 (this process has one thread)
        try:
            while process.poll() is None:
                process_kib = max(process_kib, _kib(f"/proc/{process.pid}/status", "VmHWM"))
                family = _family(process.pid)
                family_kib = max(family_kib, sum(_kib(f"/proc/{pid}/smaps_rollup", "Pss") for pid in family))
                time.sleep(SAMPLING)
        finally:
            process.kill()
            process.wait()
    return process.returncode, process_kib / 1024, family_kib / 1024


def _kib(path: str, name: str) -> int:
    """A value in KiB from a file in /proc; 0 if the process is gone."""
    try:
        lines = Path(path).read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), 0)


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    pids = [pid]
    for parent in pids:  # the list grows during the loop
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                pids += map(int, children.read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
    return pids


def train(series: str, batch: int, micro_batch: int, steps: int, folder: Path, limit: int) -> Row:
    """Run `atk train aligned` for one warmup step and `steps` more in its own process."""
    backend, cached = SERIES[series]
    out = folder / f"{backend}-{micro_batch if cached else 'whole'}-{batch}"
    row = Row(series, batch)
    shutil.rmtree(out, ignore_errors=True)
    options = RUN | {"backend": backend, "batch-size": batch, "steps": steps + 1}
    if cached:
        options["micro-batch"] = micro_batch
    program = [str(Path(sys.executable).with_name("atk")), "train", "aligned", "--data", str(folder / "data")]
    log = out.with_suffix(".log")
    command = [*program, "--out", str(out), *flags(options)]
    code, row.peak_by_system, row.peak_with_workers = run_limited(command, log, limit)
    metrics = out / "metrics.jsonl"
    logged = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    if logged:
        row.loss = logged[0]["loss"]
        row.peak = logged[-1]["memory_mib"]
        ends = [entry["seconds"] for entry in logged]
        row.step_seconds = [round(end - start, 3) for start, end in itertools.pairwise(ends)]
    if code:
        row.status, row.note = failure(code, log.read_text())
    return row


def failure(code: int, text: str) -> tuple[str, str]:
    """Status and reason of a command that exited with `code` after writing `text`."""
    refused = [line for line in text.splitlines() if "you tried to allocate" in line]
    if refused:
        nbytes = int(refused[-1].split("you tried to allocate")[1].split()[0])
        return "out of memory", f"one tensor of {nbytes / 2**30:.1f} GiB was refused"
    last = text.strip().splitlines()[-1:] or [""]
    memory = "MemoryError" in last[0] or "bad_alloc" in last[0]
    return "out of memory" if memory else "failed", last[0][:200] or f"exit code {code}"


def measure(series: Sequence[str], batches: Sequence[int], micro_batch: int, folder: Path, limit: int) -> list[Row]:
    """Run each series with growing batches until it fails; a run is wrong if its loss differs from the fused op's."""
    rows: list[Row] = []
    losses: dict[tuple[int, bool], float] = {}
    for name in series:
        failed = None
        for batch in sorted(batches):
            if failed is not None:
                rows.append(Row(name, batch, "not tried", f"failed at {failed}"))
                continue
            row = train(name, batch, micro_batch, 2 if batch <= 1024 else 1, folder, limit)
            if row.status == "ok":
                assert row.loss is not None  # a finished run has logged its loss
                expected = losses.setdefault((batch, SERIES[name][1]), row.loss)
                if abs(row.loss - expected) > SAME_LOSS * abs(expected):
                    row.status, row.note = "wrong", f"loss {row.loss:.6g}, expected {expected:.6g}"
            else:
                failed = batch
            rows.append(row)
            seconds = ", ".join(f"{value:.1f}" for value in row.step_seconds)
            print(f"{name} {batch}: {row.status} {row.note} {seconds} s, {row.peak_by_system:.0f} MiB", flush=True)
    return rows


def sizes(data: Path, batches: Sequence[int]) -> dict:
    """Samples, frames, and tokens of the longest clip and caption, and the MiB of what grows with the batch."""
    clips = read_split(data, "train").clips
    captions = [caption for clip in clips for caption in clip.captions]
    model = CLAP.create(ModelConfig(), captions)
    samples = round(max(min(clip.seconds, RUN["clip_seconds"]) for clip in clips) * model.sample_rate)
    frames = samples // round(model.frame_seconds * model.sample_rate)
    tokens = model.tokenize(captions)["input_ids"].shape[1]
    table = {}
    for n in batches:
        winners = n * n * frames
        nbytes = {
            "waveforms": 4 * n * samples,
            "embeddings": 4 * n * (frames + tokens + 2) * model.dim,
            "scores": 4 * n * n,
            "winners": winners if winners <= INDEX_BUDGET else 0,
            "naive scores": 4 * n * n * frames * tokens,
        }
        table[str(n)] = {name: value / 2**20 for name, value in nbytes.items()}
    return {"samples": samples, "frames": frames, "tokens": tokens, "mib": table}


def profiles(batch: int, micro_batch: int, folder: Path) -> list[dict]:
    """Profiles of a step with and without gradient caching, with a loader process and without one."""
    results = []
    for cached in (True, False):
        for workers in (1, 0):
            out = folder / f"profile-{micro_batch if cached else 'whole'}-{workers}"
            shutil.rmtree(out, ignore_errors=True)
            options = {"data": folder / "data", "out": out, "batch-size": batch, "workers": workers}
            if cached:
                options["micro-batch"] = micro_batch
            script = Path(__file__).with_name("large_batch_profile.py")
            subprocess.run([sys.executable, str(script), *flags(options)], check=True)
            results.append(json.loads((out / "profile.json").read_text()))
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder for data and runs (runs/large_batch)")
    parser.add_argument(
        "--results", type=Path, help="folder for the page (benchmarks/results; with --quick the folder of --runs)"
    )
    parser.add_argument("--parts", nargs="+", choices=("steps", "profile"), default=["steps", "profile"])
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES), help="series to train (all)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--micro-batch", type=int, default=64)
    parser.add_argument("--profile-batch", type=int, default=256)
    parser.add_argument("--limit-gib", type=float, default=20.0, help="limit on a training process's private memory")
    parser.add_argument(
        "--quick", action="store_true", help="only batches of 32 and 64, in micro-batches of 16, to try out the script"
    )
    parser.add_argument("--interpretation", default="", help="text for the page, interpreting the results")
    options = parser.parse_args()
    options.runs = options.runs or Path("runs/large_batch_quick" if options.quick else "runs/large_batch")
    options.results = options.results or (options.runs if options.quick else Path(__file__).parent / "results")
    if options.quick:
        options.batches, options.micro_batch, options.profile_batch = (32, 64), 16, 32
    free = _kib("/proc/meminfo", "MemAvailable") / 2**20
    if not 0 < options.limit_gib <= free:
        parser.error(f"--limit-gib must be above 0 and at most the free {free:.1f} GiB, got {options.limit_gib:g}")
    return options


def measured(name: str, options: argparse.Namespace, batches: Sequence[int]) -> dict:
    """Measure one part of the record: "steps" or "profile"."""
    if name == "profile":
        return {"rows": profiles(options.profile_batch, options.micro_batch, options.runs)}
    rows = measure(options.series, batches, options.micro_batch, options.runs, int(options.limit_gib * 2**30))
    return {
        "limit_gib": options.limit_gib,
        "sizes": sizes(options.runs / "data", batches),
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # end the training run too
    data = options.runs / "data"
    stem = options.results / "large_batch"
    batches = sorted(options.batches)
    scenes = SCENES | {"train": max(*batches, options.profile_batch)}
    run_atk("soundscapes", data, *flags(scenes))
    setting = {"scenes": scenes, "run": RUN, "micro_batch": options.micro_batch}
    path = stem.with_suffix(".json")
    previous = json.loads(path.read_text()) if path.is_file() else {}
    kept = previous.get("parts", {}) if previous.get("setting") == setting else {}
    parts = {name: part for name, part in kept.items() if name not in options.parts}
    for name in sorted(options.parts, reverse=True):  # written one by one, so that an interrupted run keeps each part
        parts[name] = {"environment": environment()} | measured(name, options, batches)
        if name == "steps":
            draw(stem.with_suffix(".png"), parts["steps"])
        write_results(stem, {"setting": setting, "parts": parts}, render_page, options.interpretation)
    print(stem.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
