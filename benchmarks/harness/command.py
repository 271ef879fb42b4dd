"""`atk bench`: selects the cases, runs them, and writes the results."""

import importlib
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch

from atk.bench import peers, regressions, report, sizes
from atk.bench.measure import FAILED, WRONG, Case, compare
from atk.bench.report import Table
from atk.ops import checks

OPS = tuple(sizes.NAMED)
MODES = ("forward", "step", "ragged_forward", "ragged_step")
DTYPES = ("float32", "bfloat16", "float16")
PROVIDERS = ("naive", "chunked einsum", "torch.compile", "nn.MultiheadAttention", "SDPA", *peers.NAMES, "atk")
SIZES = tuple(dict.fromkeys(name for op in OPS for name in (*sizes.NAMED[op], *sizes.AXES)))
ROUNDS, SHORT_ROUNDS, THRESHOLD = 7, 3, 1.3


class _Plan(NamedTuple):
    op: str
    size: str
    mode: str
    dtype: str
    shape: sizes.Shape


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("--ops", nargs="+", choices=OPS, default=list(OPS), help="ops to time (all)")
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=None, metavar="SIZE",
        help=f"{', '.join(SIZES)}; batch, length, and width are sweeps along one axis, for plots "
        "(all but tiny, and on a CPU all but the largest, which take hours there)",
    )  # fmt: skip
    parser.add_argument(
        "--kinds", nargs="+", choices=MODES, default=list(MODES), help="modes to time, if the op has them (all)"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["float32"], help="dtypes of the inputs (float32)"
    )
    parser.add_argument(
        "--providers", nargs="+", default=None, metavar="NAME",
        help=f"only providers whose names start with one of these, such as {', '.join(PROVIDERS)} (all)",
    )  # fmt: skip
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, or cuda (auto)")
    parser.add_argument("--rounds", type=int, default=None, help=f"timed calls ({ROUNDS}; {SHORT_ROUNDS} with --short)")
    parser.add_argument("--short", action="store_true", help="a few small sizes; under five minutes on two cores")
    parser.add_argument("--out", type=str, default="runs/bench", help="folder for the results (runs/bench)")
    parser.add_argument(
        "--name", type=str, default="bench", help="base name of the files: NAME.json, NAME.md, NAME_*.png (bench)"
    )
    parser.add_argument(
        "--compare", type=str, default=None, metavar="JSON", help="results of an earlier run to compare with"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help=f"factor in time or memory above which a row is a regression ({THRESHOLD})",
    )


def run(arguments: Namespace) -> list[str]:
    """Run the selected cases, write the results, and return the problems of atk's own rows, one line each.

    Raises:
        ValueError: an option is invalid, or there is nothing to run.
        OSError: a file cannot be read or written.
    """
    device = _device(arguments.device)
    rounds = (SHORT_ROUNDS if arguments.short else ROUNDS) if arguments.rounds is None else arguments.rounds
    checks.at_least("rounds", rounds, 1)
    if not arguments.threshold > 1:
        raise ValueError(f"threshold must be above 1, got {arguments.threshold}")
    _check_providers(arguments.providers)
    plans = list(_plans(arguments, device.type))
    if not plans:
        raise ValueError("nothing to run: no selected op has a selected size and kind")
    settings = {"device": device.type, "rounds": rounds, "command": _command_line(arguments)}
    record = {"environment": report.environment(), "libraries": report.libraries(), "settings": settings}
    saved = _saved(arguments.compare, record) if arguments.compare else None
    stem = Path(arguments.out) / arguments.name
    stem.parent.mkdir(parents=True, exist_ok=True)
    tables = _measure(plans, device, rounds, arguments.providers, stem, record)
    failures = [
        f"{table.title}: {row.provider}: {row.status} ({row.note})"
        for table in tables
        for row in table.rows
        if row.provider.startswith("atk ") and row.status in (WRONG, FAILED)
    ]
    if saved is not None:
        failures += _compare(tables, saved, arguments)
    for line in failures:
        print(line, file=sys.stderr)
    print(f"{stem}.md")
    return failures


def _measure(
    plans: Sequence[_Plan],
    device: torch.device,
    rounds: int,
    providers: Sequence[str] | None,
    stem: Path,
    record: dict[str, dict],
) -> list[Table]:
    """Run the planned cases, and write the results after each one, so that an interrupted run keeps them."""
    tables: list[Table] = []
    left_out: dict[str, str] = {}
    start = time.monotonic()
    intros = {plan.op: _module(plan.op).__doc__ or "" for plan in plans}
    for index, plan in enumerate(plans, 1):
        progress = f"{index}/{len(plans)}, {time.monotonic() - start:.0f} s"
        print(f"[{progress}] {plan.op} {plan.size} {plan.mode} {plan.dtype}", file=sys.stderr, flush=True)
        try:
            case = _case(plan, device, providers)
        except ImportError as error:  # a package that all providers of the op need is missing
            print(f"left out: {error}", file=sys.stderr)
            left_out[plan.op] = str(error)
            record["settings"]["left out"] = ", ".join(f"{op} ({reason})" for op, reason in left_out.items())
            continue
        if not case.providers:
            continue
        tables.append(Table(case.title, *plan[:4], plan.shape._asdict(), compare(case, rounds)))
        print(report.markdown(case.title, tables[-1].rows), flush=True)
        report.write(stem, tables, record, intros)
    if not tables:
        reason = record["settings"].get("left out", "no selected op has such a provider")
        raise ValueError(f"nothing to run: {reason}")
    report.write(stem, tables, record, intros, _plots(tables, stem))
    return tables


def _saved(path: str, record: dict[str, dict]) -> list[Table]:
    """The tables of a saved run; prints how its machine and versions differ from this one."""
    tables, differences = report.read(path), report.differences(path, record)
    if "device" in differences:
        before, now = differences["device"]
        raise ValueError(f"compare must be a run on {now}, but {path} was measured on {before}")
    for name, (before, now) in differences.items():
        print(f"{path}: {name} {before}, now {now}", file=sys.stderr)
    return tables


def _compare(tables: Sequence[Table], saved: Sequence[Table], arguments: Namespace) -> list[str]:
    lines, compared = regressions.regressions(tables, saved, arguments.threshold)
    print(f"{len(lines)} regressions in {compared} rows that are also in {arguments.compare}")
    if not compared:
        return [f"nothing to compare: {arguments.compare} has none of the cases of this run"]
    return [f"regression: {line}" for line in lines]


def _case(plan: _Plan, device: torch.device, names: Sequence[str] | None) -> Case:
    """The case with the selected providers; sweeps leave out torch.compile, which recompiles for each shape."""
    torch.manual_seed(0)
    torch.compiler.reset()  # torch limits the number of recompilations
    case = _module(plan.op).case(plan.shape, plan.mode, getattr(torch, plan.dtype), device)
    kept = [provider for provider in case.providers if names is None or provider.name.startswith(tuple(names))]
    if plan.size in sizes.AXES:
        kept = [provider for provider in kept if not provider.name.startswith("torch.compile")]
    return replace(case, providers=kept)


def _plans(arguments: Namespace, device: str) -> Iterator[_Plan]:
    for op in arguments.ops:
        names = arguments.sizes or (sizes.SHORT[op] if arguments.short else sizes.names(op, device))
        for size in names:
            modes = ["step"] if size in sizes.AXES else _module(op).MODES
            if arguments.short:
                modes = sizes.SHORT_MODES.get(op, modes)
            for mode in modes:
                for dtype in arguments.dtypes:
                    for shape in sizes.shapes(op, size, arguments.short):
                        if mode in arguments.kinds:
                            yield _Plan(op, size, mode, dtype, shape)


def _plots(tables: Sequence[Table], stem: Path) -> list[str]:
    try:
        from atk.bench.plots import plot_sweeps

        return plot_sweeps(tables, stem.parent, stem.name)
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
        return []


def _module(op: str) -> ModuleType:
    return importlib.import_module(f"atk.bench.{op}")


def _device(name: str) -> torch.device:
    checks.one_of("device", name, ("auto", "cpu", "cuda"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be 'auto' or 'cpu' without a CUDA GPU, got 'cuda'")
    return torch.device(name)


def _check_providers(names: Sequence[str] | None) -> None:
    for name in names or ():
        if not any(name.startswith(family) or family.startswith(name) for family in PROVIDERS):
            raise ValueError(f"providers must start with one of {', '.join(PROVIDERS)}, got {name!r}")


def _command_line(arguments: Namespace) -> str:
    """The command line of this run, without the options at their defaults."""
    defaults = {"ops": list(OPS), "kinds": list(MODES), "dtypes": ["float32"], "device": "auto", "threshold": THRESHOLD}
    parts = ["atk", "bench"]
    for name, value in vars(arguments).items():
        if value in (None, False) or value == defaults.get(name) or name.startswith("_"):
            continue
        parts.append(f"--{name}")
        parts += [] if value is True else map(str, value if isinstance(value, list) else [value])
    return shlex.join(parts)
