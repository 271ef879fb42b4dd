"""A table of measured values beside the thesis's figures, with intervals over seeds, as Markdown and JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atk import __version__
from atk.extras import optional_imports
from atk.recipes.jobs import Job
from atk.recipes.measure import Measured
from atk.recipes.tables import Row, Table
from atk.train.checkpoint import write_atomically

_LEVEL = 0.95  # of the intervals


def summarize(values: Sequence[float], figure: float | None) -> dict[str, float | None]:
    """Mean over seeds, half the width of its interval of 95 % by Student's t, and the difference from a figure."""
    with optional_imports:
        from scipy.stats import t  # pyrefly: ignore[untyped-import]

    mean = statistics.fmean(values)
    half = None
    if len(values) > 1:
        quantile = float(t.ppf((1 + _LEVEL) / 2, len(values) - 1))
        half = quantile * statistics.stdev(values) / len(values) ** 0.5
    return {
        "mean": mean,
        "interval": half,
        "thesis": figure,
        "difference": None if figure is None else mean - figure,
    }


def record(
    name: str,
    table: Table,
    rows: Sequence[Row],
    done: Mapping[str, Sequence[tuple[Job, Measured]]],
    open_rows: Mapping[str, str],
    scale: str,
) -> dict[str, Any]:
    """The content of the JSON file.

    Args:
        name: name of the table, such as "3.1".
        table: the table.
        rows: its rows.
        done: for each row by name, the runs that are complete and their values.
        open_rows: for the other rows, what they need.
        scale: "full" or "small".
    """
    entries = []
    for row in rows:
        figures = dict(zip(table.columns, row.figures, strict=False))
        runs = done.get(row.name, ())
        columns = {}
        for column in table.columns:
            values = [measured.values[column] for _, measured in runs if column in measured.values]
            columns[column] = summarize(values, figures.get(column)) if values else {"thesis": figures.get(column)}
        entries.append(
            {
                "row": row.name,
                "label": row.label,
                "recipe": row.recipe,
                "data": row.target,
                "needs": open_rows.get(row.name),
                "columns": columns,
                "missing": {name: reason for _, measured in runs for name, reason in measured.missing.items()},
                "runs": [
                    {
                        "seed": job.seed,
                        "folder": str(job.folder),
                        "evaluation": str(job.result),
                        "values": measured.values,
                    }
                    for job, measured in runs
                ],
            }
        )
    return {
        "table": name,
        "title": table.title,
        "scale": scale,
        "version": __version__,
        "interval": "95 % by Student's t over seeds",
        "notes": list(table.notes),
        "rows": entries,
    }


def write(stem: Path, content: Mapping[str, Any], listing: str = "") -> str:
    """Write `stem`.json and `stem`.md, and return the Markdown."""
    page = render(content, listing)
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(stem.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    write_atomically(stem.with_suffix(".md"), page)
    return page


def render(content: Mapping[str, Any], listing: str = "") -> str:
    """The Markdown page of a record; `listing` is a list of captions in place of columns."""
    parts = [f"# Table {content['table']}: {content['title']}"]
    if content["scale"] == "small":
        parts.append("At the small scale: a check that everything runs, whose values mean nothing.")
    rows = content["rows"]
    if any(row["columns"] for row in rows):
        parts.append(_grid(rows))
        parts.append("± is half of the interval of 95 % over the seeds (Student's t).")
    if listing:
        parts.append(f"```\n{listing}\n```")
    if absent := [f"- {row['label']}: needs {row['needs']}" for row in rows if row["needs"]]:
        parts.append("Not run:\n\n" + "\n".join(absent))
    reasons = {name: reason for row in rows for name, reason in row["missing"].items()}
    if reasons:
        parts.append("Not computed:\n\n" + "\n".join(f"- {name}: {reason}" for name, reason in reasons.items()))
    parts.append("\n".join(f"- {note}" for note in content["notes"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _grid(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0]["columns"])
    digits = 3 if "SPIDEr" in columns else 2
    lines = ["| | | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    for row in rows:
        cells = row["columns"].values()
        seeds = f"here, {len(row['runs'])} seed{'s' * (len(row['runs']) != 1)}"
        here = [_number(cell.get("mean"), digits, interval=cell.get("interval")) for cell in cells]
        difference = [_number(cell.get("difference"), digits, sign="+") for cell in cells]
        thesis = [_number(cell["thesis"], digits) for cell in cells]
        lines.append(f"| {row['label']} | thesis | " + " | ".join(thesis) + " |")
        if row["runs"]:
            lines.append(f"| | {seeds if row['runs'][0]['seed'] is not None else 'here'} | " + " | ".join(here) + " |")
            lines.append("| | difference | " + " | ".join(difference) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int, sign: str = "", interval: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:{sign}.{digits}f}" + ("" if interval is None else f" ± {interval:.{digits}f}")
