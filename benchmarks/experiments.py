"""The training runs of a comparison: starts the missing ones and reuses complete ones that have the same settings."""

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from atk.bench import environment

LAST_LAYERS = {"model.audio.frame_layer": "null", "model.text.token_layer": "null"}  # as in the thesis
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


def comparison_parser(about: str, name: str, steps: int | None) -> argparse.ArgumentParser:
    """Parser of the options of the comparison `name`; `steps` is the default length of a run, None if it is fixed."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs") / name, help="folder for data and runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the tables")
    parser.add_argument("--seeds", type=int, default=3)
    if steps is not None:
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


def run_name(arm: str, seed: int) -> str:
    """Folder name of a run: the words of its arm, and its seed."""
    return "-".join([*re.findall("[a-z0-9]+", arm.replace(",", "").lower()), str(seed)])


def rows_of_finished(
    runs: dict[tuple[str, int], tuple[Path, dict]], values_of: Callable[[Path, dict], dict[str, float]]
) -> list[dict]:
    """One row per finished run (arm, seed), with its `values_of` folder and metrics."""
    return [
        {"arm": arm, "seed": seed, "seconds": summary["seconds"], **values_of(runs[arm, seed][0], summary["metrics"])}
        for (arm, seed), summary in finished(runs).items()
    ]


def study_record(
    folder: Path,
    runs: dict[tuple[str, int], tuple[Path, dict]],
    values_of: Callable[[Path, dict], dict[str, float]],
    tables: Callable[[list[dict]], dict[str, str]],
) -> dict:
    """What the page of a study needs of its runs, finished or not; their scenes are in `folder`/data."""
    rows = rows_of_finished(runs, values_of)
    if not rows:
        raise SystemExit(f"no run in {folder} is finished")
    done = {(row["arm"], row["seed"]) for row in rows}
    return {
        "scenes": yaml.safe_load((folder / "data" / "soundscapes.yaml").read_text()),
        "unfinished": [out.name for key, (out, _) in runs.items() if key not in done],
        "tables": tables(rows),
        "rows": rows,
    }


def captioned_clips(data: Path, target: Path, count: int, links: Iterable[str]) -> None:
    """Make a folder with the first `count` rows of the train.csv of another, and links to other files of it."""
    target.mkdir(exist_ok=True)
    with (data / "train.csv").open(newline="") as file, (target / "train.csv").open("w", newline="") as kept:
        csv.writer(kept).writerows(islice(csv.reader(file), count + 1))  # with the header
    for name in links:
        _link(target / name, data / name)


def audio_of_clips(data: Path, target: Path, clips: slice) -> None:
    """Make a folder of links to the audio of some of the training clips."""
    target.mkdir(exist_ok=True)
    with (data / "train.csv").open(newline="") as file:
        names = [row["file_name"] for row in csv.DictReader(file)]
    for name in names[clips]:
        _link(target / Path(name).name, data / name)


def _link(path: Path, target: Path) -> None:
    if not path.is_symlink():
        path.symlink_to(os.path.relpath(target, path.parent))


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


def difference(rows: list[dict], arm: str, baseline: str, column: str, digits: int = 1) -> str:
    """Mean difference between two arms in the same seeds, and its 95 % interval; "" if no seed has both values."""
    values, others = (
        {row["seed"]: row[column] for row in rows if row["arm"] == name and column in row} for name in (arm, baseline)
    )
    gains = [value - others[seed] for seed, value in values.items() if seed in others]
    return mean_and_interval(gains, digits, signed=True) if gains else ""


def means_table(rows: list[dict], arms: Iterable[str], columns: Iterable[str]) -> str:
    """One line per arm: the mean of each column over the finished seeds with its interval, and the number of seeds."""
    columns = list(columns)
    lines = [f"| | {' | '.join(columns)} | seeds |", "|---|" + "---:|" * (len(columns) + 1)]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        of_column = [[row[column] for row in mine if column in row] for column in columns]
        cells = [mean_and_interval(values) if values else "" for values in of_column]
        lines.append(f"| {arm} | {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(lines)


def gains_table(rows: list[dict], pairs: dict[str, tuple[str, str]], columns: Iterable[str]) -> str:
    """One line per pair of arms: the paired difference of each column, and the number of seeds that have both arms."""
    columns = list(columns)
    lines = [f"| gain | {' | '.join(columns)} | seeds |", "|---|" + "---:|" * (len(columns) + 1)]
    for label, (arm, baseline) in pairs.items():
        seeds, others = ({row["seed"] for row in rows if row["arm"] == name} for name in (arm, baseline))
        cells = [difference(rows, arm, baseline, column) for column in columns]
        lines.append(f"| {label} | {' | '.join(cells)} | {len(seeds & others)} |")
    return "\n".join(lines)


def listed(settings: dict) -> str:
    """Settings as "name value, name value"."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def training_time(record: dict) -> str:
    """A sentence about how long the runs of a record took."""
    seconds = [row["seconds"] for row in record["rows"]]
    return f"Training took {min(seconds):.0f} to {max(seconds):.0f} s per run, with {record['jobs']} at a time."


def joined_page(parts: Iterable[str], command: str, record: dict) -> str:
    """A Markdown page of the parts that are not empty, the command, and the environment of the runs."""
    measured = ", ".join(f"{name}: {value}" for name, value in record["environment"].items())
    return "\n\n".join(part for part in (*parts, f"Command: `{command}`.", f"{measured}.") if part) + "\n"


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
    record = measured | record | {"interpretation": interpretation or previous.get("interpretation", "")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    stem.with_suffix(".md").write_text(render_page(record))
