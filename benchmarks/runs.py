"""Training runs of a comparison: started by `atk`, kept when complete, checked against what is asked for."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from atk.bench import environment


def atk(*arguments: object, threads: int | None = None) -> None:
    """Run the command; `threads` limits its CPU threads."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    subprocess.run([str(Path(sys.executable).with_name("atk")), *map(str, arguments)], check=True, env=environment)


def flags(options: dict) -> list[str]:
    """Options as arguments; names in a list follow their flag one by one."""
    arguments = []
    for name, value in options.items():
        names = isinstance(value, list) and all(isinstance(item, str) for item in value)
        arguments += [f"--{name}", *(value if names else [str(value)])]
    return arguments


def train_all(method: str, data: Path, runs: dict[Path, dict], jobs: int = 1) -> None:
    """Train every run (folder: options) that has no summary yet, `jobs` at a time on an equal share of the CPUs."""
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def train(out: Path, options: dict) -> None:
        if (out / "config.yaml").is_file():
            check_settings(out, options)
        if not (out / "summary.json").is_file():
            atk("train", method, "--data", data, "--out", out, "--resume", *flags(options), threads=threads)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(train, out, options) for out, options in runs.items()]:
            done.result()


def check_settings(out: Path, wanted: dict) -> None:
    """A run left by an earlier call must have the settings that the page will name."""
    config = yaml.safe_load((out / "config.yaml").read_text())
    for name, value in wanted.items():
        found = config
        for part in name.split("."):
            found = found[part]
        if found != yaml.safe_load(str(value)):
            raise SystemExit(f"{out} was made with {name} {found}, not {value}: remove it or name another --runs")


def mean_and_spread(values: Iterable[float], digits: int = 1) -> str:
    """Mean over the seeds, and their standard deviation where there are several."""
    values = list(values)
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def write_results(
    stem: Path, record: dict, document: Callable[[dict], str], reading: str, jobs: int = 1, report: bool = False
) -> None:
    """Write `stem`.json and .md; without a `reading` the page keeps its own.

    `report`: the runs are those of an earlier call, and so are the machine, the commit and the runs at a time.
    """
    path = stem.with_suffix(".json")
    previous = json.loads(path.read_text()) if path.is_file() else {}
    measured = {"environment": environment(), "jobs": jobs}
    if report:
        measured |= {name: previous[name] for name in measured if name in previous}
    record = measured | record | {"reading": reading or previous.get("reading", "")}
    path.write_text(json.dumps(record, indent=2) + "\n")
    stem.with_suffix(".md").write_text(document(record))
