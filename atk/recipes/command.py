"""`atk reproduce`: its arguments, and what it does."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from jsonargparse import ArgumentParser, Namespace

from atk.device import launcher_integer
from atk.recipes.dry_run import describe
from atk.recipes.jobs import Job, Machine, jobs
from atk.recipes.listing import list_captions
from atk.recipes.measure import Measured, measured
from atk.recipes.report import record, write
from atk.recipes.small import stand_ins
from atk.recipes.sources import DATA, HUB, WEIGHTS, check_weights, parse_sources
from atk.recipes.tables import TABLES, Row, Table

TableName = Literal["3.1", "4.1", "4.2", "4.3", "5.1", "5.2", "5.3", "5.4"]
Scale = Literal["full", "small"]
assert get_args(TableName) == tuple(TABLES)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of `atk reproduce`."""
    parser.add_argument("table", type=TableName, help="table of the thesis")
    parser.add_argument(
        "--out", type=str, required=True, help="folder for the runs and tables; several tables share it"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="data sets: " + "; ".join(f"{name}: {text}" for name, text in DATA.items()),
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="published files: "
        + "; ".join(f"{name}: {text}" + (f" ({HUB[name]})" if name in HUB else "") for name, text in WEIGHTS.items()),
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds to train")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="rows to run; all by default")
    parser.add_argument("--dry_run", action="store_true", help="print the runs with all settings, time, and memory")
    parser.add_argument(
        "--scale",
        type=Scale,
        default="full",
        help="small: tiny models and a few steps, on synthetic data where --data gives none",
    )
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda; with --dry-run also h100, ...")
    parser.add_argument("--devices", type=int, default=1, help="number of ranks to train on, with one device each")
    parser.add_argument("--workers", type=int | None, default=None, help="processes that read audio, as in atk train")
    parser.add_argument("--micro_batch", type=int | None, default=None, help="clips encoded at a time, as in atk train")


def run(arguments: Namespace) -> None:
    """Run `atk reproduce`.

    Raises:
        ValueError, FileNotFoundError, AudioError: an argument or the data cannot be used.
        TrainingError, Interrupted, RankLost: see `atk.train.trainer.Trainer.fit`.
    """
    if launcher_integer("WORLD_SIZE", 1) > 1:
        raise ValueError("start atk reproduce without torchrun; --devices starts the ranks of each run")
    if arguments.devices < 1:
        raise ValueError(f"devices must be at least 1, got {arguments.devices}")
    table = TABLES[arguments.table]
    rows = [table.row(name) for name in dict.fromkeys(arguments.rows)] or list(table.rows)
    small = arguments.scale == "small"
    out = Path(os.path.abspath(arguments.out), *(["small"] if small else []))  # noqa: PTH100 (keeps links)
    sources = (
        HUB | parse_sources(arguments.data, DATA, "--data") | parse_sources(arguments.weights, WEIGHTS, "--weights")
    )
    seeds = list(dict.fromkeys(arguments.seeds))
    if small:
        planned = jobs(table, rows, seeds, out / "runs", sources, small)
        needed = dict.fromkeys(name for job in planned for name in (*job.recipe.sources, job.row.target))
        sources = stand_ins(out / "data", [name for name in needed if name not in sources]) | sources
    machine = Machine(arguments.device, arguments.devices, arguments.workers, arguments.micro_batch)
    todo = list(jobs(table, rows, seeds, out / "runs", sources, small))
    if arguments.dry_run:
        print(describe(todo, machine))
        return
    check_weights(sources)
    done, open_rows = _run_all(todo, table, machine)
    stem = out / f"table_{arguments.table.replace('.', '_')}"
    listing = _listing(stem, rows, done, machine) if table.evaluation == "listing" else ""
    page = write(stem, record(arguments.table, table, rows, done, open_rows, arguments.scale), listing)
    print(f"{page}\n{stem}.md\n{stem}.json")


def _run_all(
    todo: Sequence[Job], table: Table, machine: Machine
) -> tuple[dict[str, list[tuple[Job, Measured]]], dict[str, str]]:
    """The complete runs of each row with their values, and what the other rows need.

    All runs are checked before the first one begins, which may take days.
    """
    for job in todo:
        if not job.needs:
            job.check(machine)
    done: dict[str, list[tuple[Job, Measured]]] = {}
    open_rows: dict[str, str] = {}
    for position, job in enumerate(todo, 1):
        if job.needs:
            open_rows[job.row.name] = ", ".join(job.needs)
            continue
        print(f"run {position} of {len(todo)}: {job.name} ({job.state})", file=sys.stderr)
        result = job.run(machine)
        if job.fallback:
            place = job.sources[job.row.target]
            print(f"{job.name}: {place} has no test split; evaluated on {job.fallback}", file=sys.stderr)
        values = Measured({}, {}) if table.evaluation == "listing" else measured(table, result)
        done.setdefault(job.row.name, []).append((job, values))
    for name, needs in open_rows.items():
        print(f"not run: {name} needs {needs}", file=sys.stderr)
    if not done:
        raise ValueError(f"no row can be run; {next(iter(open_rows))} needs {next(iter(open_rows.values()))}")
    return done, open_rows


def _listing(
    stem: Path, rows: Sequence[Row], done: Mapping[str, Sequence[tuple[Job, Measured]]], machine: Machine
) -> str:
    """The captions of the first seed."""
    if {row.name for row in rows} != done.keys() or len(done) < 2:
        raise ValueError(f"table 4.3 lists the captions of two rows, baseline and mask, got {', '.join(done)}")
    (baseline, _), (model, _) = done["baseline"][0], done["mask"][0]
    path = stem.with_name(f"{stem.name}_seed{model.seed}.csv")
    return list_captions(path, model, baseline, machine)
