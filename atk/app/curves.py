"""The curves of a run, drawn from its metrics.jsonl."""

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from atk.eval.figures import new_figure, picture_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = dict[str, list[tuple[float, float]]]  # (step, value) of each metric

_HIDDEN = ("step", "seconds", "memory_mib")
_READINGS = ("lr", "grad_norm", "examples_per_second")  # besides losses, and names that end as follows
_READING_ENDS = ("_scale", "_bias")
_COLUMNS = 3
_MOST_POINTS = 1000  # drawn of a curve


def read_curves(run: Path) -> Curves:
    """The curves of a run; lines that a crash cut short are left out.

    Raises:
        ValueError: the run has no metrics yet.
    """
    path = run / "metrics.jsonl"
    curves: Curves = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                for name, point in _points(line):
                    curves.setdefault(name, []).append(point)
    if not curves:
        raise ValueError(f"{run.name}: no metrics.jsonl with values, which atk train writes")
    return curves


def _points(line: str) -> list[tuple[str, tuple[float, float]]]:
    try:
        row = json.loads(line)
        step = float(row["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    values = ((name, value) for name, value in row.items() if name not in _HIDDEN)
    return [
        (name, (step, float(value)))
        for name, value in values
        if isinstance(value, (int, float)) and math.isfinite(value) and math.isfinite(step)
    ]


def groups_of(names: list[str]) -> list[tuple[str, list[str]]]:
    """Panels and their curves: the losses of training in one, everything else by itself, validation first."""
    losses = [name for name in names if "/" not in name and not _is_reading(name)]
    alone = sorted((name for name in names if name not in losses), key=_is_reading)
    return [("loss", losses)] * bool(losses) + [(name, [name]) for name in alone]


def _is_reading(name: str) -> bool:
    return name in _READINGS or name.endswith(_READING_ENDS)


def draw_curves(curves: Curves, title: str) -> bytes:
    """A PNG with the curves of a run over its steps, in panels."""
    panels = groups_of(list(curves))
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = new_figure(11, 2.3 * rows + 0.5)
    grid = figure.add_gridspec(rows, _COLUMNS)
    for place, (label, names) in enumerate(panels):
        axes = figure.add_subplot(grid[divmod(place, _COLUMNS)])
        axes.set_title(label, fontsize="medium", parse_math=False)
        for name in names:
            _draw(axes, curves[name], name)
        if len(names) > 1:
            legend = axes.legend(fontsize="x-small")
            for text in legend.get_texts():
                text.set_parse_math(False)
        axes.tick_params(labelsize="small")
        axes.grid(alpha=0.3)
        if place + _COLUMNS >= len(panels):
            axes.set_xlabel("step")
    figure.suptitle(picture_title(title), parse_math=False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw(axes: "Axes", points: list[tuple[float, float]], label: str) -> None:
    thinned = points[:: math.ceil(len(points) / _MOST_POINTS)]
    steps, values = zip(*thinned, strict=True)
    axes.plot(steps, values, label=label, linewidth=1.2, marker="." if len(thinned) < 30 else "")
