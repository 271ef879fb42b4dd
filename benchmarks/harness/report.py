"""The results of a benchmark run: the environment, and the tables as Markdown and JSON."""

import datetime as dt
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

from atk.bench.measure import OK, Row

_LIBRARIES = (
    "late-interaction-kernels", "flash-maxsim", "maxsim-cpu", "inf-cl", "cut-cross-entropy", "open-clip-torch",
    "kernels",
)  # fmt: skip
LEGEND = """\
Times are medians over the rounds, in milliseconds, with their spread; providers took turns. `fraction of limit` is the
time of the last row divided by the provider's. `speed` is relative to the first row. `peak MiB` is the peak memory of
one call beyond what was allocated before it. `error` is the largest difference from float64, relative to the largest
true value.
"""


@dataclass
class Table:
    """The rows of one case, and what identifies the case."""

    title: str
    op: str
    size: str
    kind: str
    dtype: str
    shape: dict[str, int | float]
    rows: list[Row]

    @property
    def key(self) -> tuple[object, ...]:
        """Identifies the case; equal in another run of the same case."""
        return self.op, self.size, self.kind, self.dtype, tuple(self.shape.items())


def environment() -> dict[str, str | int]:
    """What the measurements depend on: machine, versions, commit, and date."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "cpu": names[0] if names else platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _versions().get("triton", "none"),
        "commit": _commit() or "none",
    }


def _commit() -> str:
    """Commit of this file's checkout, or "" for an installed file, which may be inside another project's checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None or not Path(git("rev-parse", "--show-toplevel"), "benchmarks", "harness").is_dir():
        return ""
    return git("describe", "--always", "--dirty", "--abbrev=12")


def libraries() -> dict[str, str]:
    """Versions of the other libraries that are installed."""
    versions = _versions()
    return {name: versions[name] for name in _LIBRARIES if name in versions}


def _versions() -> dict[str, str]:
    """Version of every installed package, skipping the nameless leftovers of an interrupted `pip install`."""
    packages = metadata.distributions()
    return {p.metadata["Name"].replace("_", "-").lower(): p.version for p in packages if p.metadata["Name"]}


def markdown(title: str, rows: Sequence[Row]) -> str:
    """The rows as a table under a heading, followed by the rates behind the limit."""
    lines = [
        f"### {title}\n",
        "| provider | median ms | p20 to p80 | GFLOP/s | fraction of limit | speed | peak MiB | error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f}"
        if row.status == OK:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
            rate = f"{row.gflops:.0f} | {row.of_limit:.2f} | {ratio}"
            times = f"{row.median_ms:.2f} | {row.p20_ms:.2f} to {row.p80_ms:.2f} | {rate}"
        else:
            note = row.note.replace("|", "\\|")
            times = f"{row.status}: {note} | | | | "
        lines.append(f"| {row.provider} | {times} | {peak} | {error} |")
    notes = [f"\n{row.provider}: {row.note}.\n" for row in rows if row.status == OK and row.note]
    return "\n".join([*lines, *notes]) + ("" if notes else "\n")


def _document(
    prefix: str, record: dict[str, dict], tables: Sequence[Table], intros: dict[str, str], plots: Sequence[str]
) -> str:
    parts = ["".join(f"- {name}: {value}\n" for part in record.values() for name, value in part.items()), LEGEND]
    for op in dict.fromkeys(table.op for table in tables):
        parts.append(f"## {op}\n\n{intros.get(op, '').strip()}\n")
        plots_of_op = [name for name in plots if name.startswith(f"{prefix}_{op}_")]
        parts += [f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in plots_of_op]
        parts += [markdown(table.title, table.rows) for table in tables if table.op == op]
    return "\n".join(parts)


def write(
    stem: Path, tables: Sequence[Table], record: dict[str, dict], intros: dict[str, str], plots: Sequence[str] = ()
) -> None:
    """Write `stem`.json and `stem`.md; `record` has named groups of facts, `intros` an introduction for each op."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    content = record | {"tables": [asdict(table) for table in tables]}
    stem.with_name(stem.name + ".json").write_text(json.dumps(content, indent=2) + "\n")
    stem.with_name(stem.name + ".md").write_text(_document(stem.name, record, tables, intros, plots))


def differences(path: str | Path, record: dict[str, dict]) -> dict[str, tuple[object, object]]:
    """Facts that affect times and differ between the run saved at `path` and `record`: (saved value, new value)."""
    saved = json.loads(Path(path).read_text())
    groups = {"settings": ("device",), "environment": ("cpu", "threads", "gpu", "torch", "triton")}
    facts = [(group, name) for group, names in groups.items() for name in names]
    pairs = {name: (saved.get(group, {}).get(name, "unknown"), record[group][name]) for group, name in facts}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def read(path: str | Path) -> list[Table]:
    """The tables of a JSON file written by `write`.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no such tables.
    """
    try:
        tables = json.loads(Path(path).read_text())["tables"]
        return [Table(**table | {"rows": [Row(**row) for row in table["rows"]]}) for table in tables]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no tables of `atk bench`: {error}") from None
