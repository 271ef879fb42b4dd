"""The training runs of a comparison: starts the missing ones and reuses complete ones that have the same settings."""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from atk.bench import environment

_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # 97.5 %, for 1 to 9 degrees of freedom


def run_atk(*arguments: object, threads: int | None = None) -> None:
    """Run the `atk` command; `threads` limits its CPU threads."""
    limited = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    subprocess.run([str(Path(sys.executable).with_name("atk")), *map(str, arguments)], check=True, env=limited)


def flags(options: dict) -> list[str]:
    """Command-line arguments for `options`; the strings of a list follow their flag as separate arguments."""
    arguments: list[str] = []
    for name, value in options.items():
        several = isinstance(value, list) and all(isinstance(item, str) for item in value)
        arguments += [f"--{name}", *(value if several else [str(value)])]
    return arguments


def train_all(method: str, data: Path, runs: dict[Path, dict], jobs: int = 1) -> None:
    """Train every run (folder: options) without a summary, `jobs` at a time, each with an equal share of the CPUs."""
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def train(out: Path, options: dict) -> None:
        if (out / "config.yaml").is_file():
            check_settings(out, options)
        if not (out / "summary.json").is_file():
            run_atk("train", method, "--data", data, "--out", out, "--resume", *flags(options), threads=threads)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(train, out, options) for out, options in runs.items()]:
            future.result()


def comparison_parser(about: str, name: str, steps: int) -> argparse.ArgumentParser:
    """Parser of the options of the comparison `name`; `steps` is the default length of a run."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help="folder for data and runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the tables")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--report", action="store_true", help="train nothing; write the tables of the finished runs")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs to train at once; they share the CPUs")
    parser.add_argument("--interpretation", default="", help="text for the page, interpreting the results")
    return parser


def check_settings(out: Path, wanted: dict) -> None:
    """Check that a run left by an earlier call has the settings that the page will report."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    for name, value in wanted.items():
        saved = config
        for part in name.split("."):
            saved = saved[part]
        if saved != yaml.safe_load(str(value)):
            raise SystemExit(f"{out} was trained with {name} {saved}, not {value}: remove it or choose another --runs")


def finished(runs: dict[Any, tuple[Path, dict]]) -> dict[Any, dict]:
    """The summaries of the finished runs; each run is (folder, options)."""
    files = {key: out / "summary.json" for key, (out, _) in runs.items()}
    return {key: json.loads(file.read_text()) for key, file in files.items() if file.is_file()}


def mean_and_spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean over the seeds, and the standard deviation if there are several."""
    values = list(values)
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def mean_and_interval(values: Iterable[float], digits: int = 1, signed: bool = False) -> str:
    """Mean over the seeds, and half the width of its 95 % interval (Student's t) if there are two to ten."""
    values = list(values)
    mean = f"{statistics.mean(values):{'+' if signed else ''}.{digits}f}"
    if not 2 <= len(values) <= len(_T_QUANTILES) + 1:
        return mean
    half = _T_QUANTILES[len(values) - 2] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.{digits}f}"


def write_results(
    stem: Path,
    record: dict,
    render_page: Callable[[dict], str],
    interpretation: str,
    jobs: int = 1,
    report: bool = False,
) -> None:
    """Write `stem`.json and `stem`.md.

    If `interpretation`, a text about the results, is empty, the page keeps its previous one. With `report`, the runs
    come from an earlier call, so that call's environment and number of jobs are kept too.
    """
    path = stem.with_suffix(".json")
    previous = json.loads(path.read_text()) if path.is_file() else {}
    measured = {"environment": environment(), "jobs": jobs}
    if report:
        measured |= {name: previous[name] for name in measured if name in previous}
    previous_text = previous.get("interpretation", previous.get("reading", ""))  # older results have "reading"
    record = measured | record | {"interpretation": interpretation or previous_text}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    stem.with_suffix(".md").write_text(render_page(record))
