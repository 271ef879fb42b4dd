"""The page and the plot of `large_batch.py`, computed from its record."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {  # series: color, line
    "fused, cached": ("C0", "-"),
    "naive, cached": ("C3", "-"),
    "fused, at once": ("C0", "--"),
    "naive, at once": ("C3", "--"),
}


def render_page(record: dict) -> str:
    """The Markdown page: what was measured, the tables, their interpretation, and the environment."""
    setting, parts = record["setting"], record["parts"]
    scenes, run = setting["scenes"], setting["run"]
    text = [
        "# Aligned training by batch size",
        (
            f"`atk train aligned` with the default model on {scenes['train']} synthetic soundscapes, with clips of "
            f"{run['clip_seconds']:g} s and each run in its own process. **Fused** is the op (`--backend cpp`); "
            "**naive** is the einsum that holds every score (`--backend reference`), in the same trainer. **Cached** "
            f"encodes {setting['micro_batch']} clips at a time (`--micro-batch {setting['micro_batch']}`); **at once** "
            "encodes the whole batch."
        ),
    ]
    if "steps" in parts:
        text += _steps(parts["steps"])
    if "profile" in parts:
        text += _profile(parts["profile"])
    text += [
        record["interpretation"],
        "Run: " + ", ".join(f"{name} {value}" for name, value in run.items()) + ".",
        "Command: `python benchmarks/large_batch.py`.",
    ]
    return "\n\n".join(part for part in text if part) + "\n"


def _steps(part: dict) -> list[str]:
    rows = part["rows"]
    series = list(dict.fromkeys(row["series"] for row in rows))
    batches = sorted({row["batch"] for row in rows})
    row_of = {(row["series"], row["batch"]): row for row in rows}
    return [
        "## Memory and time by batch",
        "![memory and time of a step by batch](large_batch.png)",
        (
            "Seconds per step (median without the first step, including the wait for data), and peak resident memory "
            "of the trainer in MiB, including the interpreter and libraries. Each process is limited to "
            f"{part['limit_gib']:g} GiB of private memory; larger allocations fail. A run is wrong if its loss in the "
            "first step differs from that of the fused op. After a failure, larger batches are not tried."
        ),
        _table(batches, series, lambda name, n: _outcome(row_of[name, n])),
        "Reasons: " + "; ".join(f"{row['series']}, {row['batch']}: {row['note']}" for row in rows if _tried(row)) + "."
        if any(map(_tried, rows))
        else "",
        *_growth(row_of, batches, part["sizes"]),
        (
            "Memory in MiB, measured in three ways: by the trainer's log (`memory_mib`), by the system's high-water "
            "mark for the same process, and for the trainer and its workers together, with shared pages counted once "
            "(sampled, so it can miss a short peak)."
        ),
        _table(batches, series, lambda name, n: _memories(row_of[name, n])),
        _where(part),
    ]


def _tried(row: dict) -> bool:
    return bool(row["note"]) and row["status"] != "not tried"


def _table(batches: list[int], columns: list[str], cell: Callable[[str, int], str]) -> str:
    lines = ["| batch | " + " | ".join(columns) + " |", "|---:|" + "---:|" * len(columns)]
    return "\n".join(lines + [f"| {n} | " + " | ".join(cell(name, n) for name in columns) + " |" for n in batches])


def _outcome(row: dict) -> str:
    if row["status"] != "ok":
        return row["status"]
    return f"{statistics.median(row['step_seconds']):.1f} s, {row['peak']:.0f} MiB"


def _memories(row: dict) -> str:
    if row["status"] == "not tried":
        return ""
    logged = "none" if row["peak"] is None else f"{row['peak']:.0f}"
    with_workers = row["peak_with_workers"] if "peak_with_workers" in row else row["peak_of_all"]  # the older name
    return f"{logged}, {row['peak_by_system']:.0f}, {with_workers:.0f}"


def _growth(row_of: dict[tuple[str, int], dict], batches: list[int], sizes: dict) -> list[str]:
    """Computed sizes of what grows with the batch, and the measured peak of the cached fused run."""
    names = ("waveforms", "embeddings", "scores", "winners", "naive scores")
    rows = {n: row_of["fused, cached", n] for n in batches if ("fused, cached", n) in row_of}
    peak = {n: row["peak"] for n, row in rows.items() if row["status"] == "ok"}
    bare = {n: value - sizes["mib"][str(n)]["waveforms"] for n, value in peak.items()}
    cells = {(name, n): f"{sizes['mib'][str(n)][name]:.0f}" for name in names for n in batches}
    cells |= {("peak", n): f"{value:.0f}" for n, value in peak.items()}
    cells |= {("peak without waveforms", n): f"{value:.0f}" for n, value in bare.items()}
    text = [
        (
            "What grows with the batch, in MiB: the waveforms; one copy of the embeddings in fp32 (a step holds "
            "several: the cache, its concatenation, the normalized rows, and gradients); one N x N matrix of scores "
            "(InfoNCE and its gradient hold several); the winner indices that the op keeps for its backward (one byte "
            "per frame and caption, none beyond the budget of `save_index`); and the scores of the naive einsum (which "
            f"holds them more than once). Clips have {sizes['frames']} frames, captions up to {sizes['tokens']} "
            "tokens. The last two columns are measured with the fused, cached series."
        ),
        _table(batches, [*names, "peak", "peak without waveforms"], lambda name, n: cells.get((name, n), "")),
    ]
    if len(peak) > 1:
        first, last = min(peak), max(peak)
        text.append(
            f"From {first} to {last} clips (a batch {last / first:.0f} times as large), the peak of the fused, cached "
            f"series grows by a factor of {peak[last] / peak[first]:.2f}, and by {bare[last] / bare[first]:.2f} "
            "without the waveforms."
        )
    return text


def _profile(part: dict) -> list[str]:
    rows = part["rows"]
    labels = [
        f"{'cached by ' + str(row['micro_batch']) if row['micro_batch'] else 'at once'}, "
        f"{row['workers']} loader{'' if row['workers'] == 1 else 's'}"
        for row in rows
    ]
    totals: dict[str, float] = {}
    for row in rows:
        for name, seconds in row["stages"].items():
            totals[name] = totals.get(name, 0) + seconds
    lines = ["| stage | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(rows)]
    stages = sorted(totals, key=lambda name: totals[name], reverse=True)
    ops = sorted({name for row in rows for name in row["ops"]})
    lines += [_line(name, rows, [row["stages"].get(name) for row in rows]) for name in stages]
    lines.append(_line("whole step", rows, [row["step_seconds"] for row in rows]))
    lines += [_line(f"of which `{name}`", rows, [row["ops"].get(name) for row in rows]) for name in ops]
    return [
        f"## Where the time of a step goes, batch {rows[0]['batch']}",
        (
            f"Mean seconds of {rows[0]['steps']} steps after a warmup step, and their percentage of the step, with the "
            "fused op. Stages follow one another and add up to the step. The backward of a part begins when its output "
            "receives its gradient; the backward of the audio encoder includes gradient clipping. With 0 loaders the "
            "trainer reads the files itself; with 1, a process reads ahead and shares the cores. Validation and "
            "checkpoints are not included. Lines with `atk::` are part of the two stages of the loss and are measured "
            "by torch.profiler, whose overhead is in all lines."
        ),
        "\n".join(lines),
        _where(part),
    ]


def _line(name: str, rows: list[dict], values: list[float | None]) -> str:
    """A line of the table of stages: seconds, and percentage of the step."""
    cells = [
        "" if seconds is None else f"{seconds:.3f} ({100 * seconds / row['step_seconds']:.1f} %)"
        for row, seconds in zip(rows, values, strict=True)
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def _where(part: dict) -> str:
    return "Measured: " + ", ".join(f"{name}: {value}" for name, value in part["environment"].items()) + "."


def draw(path: Path, part: dict) -> None:
    """Plot a step's memory and time against the batch on log axes; a cross marks the batch at which a series fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    memory, seconds = figure.subplots(1, 2)
    memory.axhline(part["limit_gib"] * 1024, color="grey", linewidth=1, label="limit per process")
    for index, (name, (color, line)) in enumerate(STYLES.items()):
        rows = [row for row in part["rows"] if row["series"] == name]
        finished = [row for row in rows if row["status"] == "ok"]
        style: dict[str, Any] = {"color": color, "linestyle": line, "marker": "o", "markersize": 4, "label": name}
        n = [row["batch"] for row in finished]
        memory.plot(n, [row["peak"] for row in finished], **style)
        seconds.plot(n, [statistics.median(row["step_seconds"]) for row in finished], **style)
        for axes in (memory, seconds):
            _mark_failure(axes, rows, 0.97 - 0.05 * index, color)
        if name == "fused, cached":
            bare = [row["peak"] - part["sizes"]["mib"][str(row["batch"])]["waveforms"] for row in finished]
            memory.plot(n, bare, color=color, linestyle=":", label=f"{name}, without waveforms")
    for axes, label in ((memory, "peak memory of the trainer, MiB"), (seconds, "seconds per step")):
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
        axes.set_xticks(sorted({row["batch"] for row in part["rows"]}), minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.minorticks_off()
        axes.set_ylim(top=3 * axes.get_ylim()[1])  # space for the crosses
        axes.grid(alpha=0.3)
    memory.legend(fontsize=7, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _mark_failure(axes: "Axes", rows: list[dict], height: float, color: str) -> None:
    """Draw a labeled cross above the batch at which a series fails; `height` is a fraction of the axis."""
    for row in rows:
        if row["status"] in ("ok", "not tried"):
            continue
        axes.plot(row["batch"], height, "x", color=color, transform=axes.get_xaxis_transform())
        axes.annotate(
            f"{row['series']}: {row['status']}",
            (row["batch"], height),
            (-6, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7,
            color=color,
        )
