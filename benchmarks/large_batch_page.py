"""The page and the plot of `large_batch.py`, made of its record alone."""

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {  # series: colour, line
    "fused, cached": ("C0", "-"),
    "naive, cached": ("C3", "-"),
    "fused, at once": ("C0", "--"),
    "naive, at once": ("C3", "--"),
}


def document(record: dict) -> str:
    """The Markdown page: what was measured, the tables, and where it was measured."""
    setting, parts = record["setting"], record["parts"]
    scenes, run = setting["scenes"], setting["run"]
    text = [
        "# Aligned training by batch size",
        f"`atk train aligned` with the default model on {scenes['train']} synthetic soundscapes, clips of "
        f"{run['clip_seconds']:g} s, each run in a process of its own. **Fused** is the op (`--backend cpp`), "
        "**naive** the einsum that holds every score (`--backend reference`), in the same trainer. **Cached** encodes "
        f"{setting['micro_batch']} clips at a time (`--micro-batch {setting['micro_batch']}`), **at once** the batch.",
    ]
    if "steps" in parts:
        text += _steps(parts["steps"])
    if "profile" in parts:
        text += _profile(parts["profile"])
    text += [
        record["reading"],
        "Run: " + ", ".join(f"{name} {value}" for name, value in run.items()) + ".",
        "Command: `python benchmarks/large_batch.py`.",
    ]
    return "\n\n".join(part for part in text if part) + "\n"


def _steps(part: dict) -> list[str]:
    rows, sizes = part["rows"], part["sizes"]
    series, batches = list(dict.fromkeys(row["series"] for row in rows)), sorted({row["batch"] for row in rows})
    found = {(row["series"], row["batch"]): row for row in rows}
    return [
        "## Memory and time by batch",
        "![memory and time of a step by batch](large_batch.png)",
        "Seconds of a step (median; the first step, a warm-up, is left out; waiting for data included) and highest "
        "resident memory of the trainer in MiB, its interpreter and libraries included. A process may have "
        f"{part['limit_gib']:g} GiB of private memory; what it asks for beyond that is refused. The loss of the first "
        "step of fused and naive must agree, else a row is wrong. After a failure larger batches are not tried.",
        _table(batches, series, lambda name, n: _outcome(found[name, n])),
        "Reasons: " + "; ".join(f"{row['series']}, {row['batch']}: {row['note']}" for row in rows if _tried(row)) + "."
        if any(map(_tried, rows))
        else "",
        *_growth(found, batches, sizes),
        "Memory measured three ways, in MiB: by the trainer's log (`memory_mib`), by the kernel's high-water mark of "
        "the same process, and of trainer and loader together with shared pages counted once (sampled, so it may miss "
        "a short peak).",
        _table(batches, series, lambda name, n: _memories(found[name, n])),
        _where(part),
    ]


def _tried(row: dict) -> bool:
    return bool(row["note"]) and row["status"] != "not tried"


def _table(batches: list[int], columns: list[str], cell) -> str:
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
    return f"{logged}, {row['peak_by_kernel']:.0f}, {row['peak_of_all']:.0f}"


def _growth(found: dict, batches: list[int], sizes: dict) -> list[str]:
    """What grows with the batch, computed, beside the cached fused run's peak with and without waveforms."""
    names = ("waveforms", "embeddings", "scores", "winners", "naive scores")
    rest = {n: found["fused, cached", n] for n in batches if found.get(("fused, cached", n), {}).get("status") == "ok"}
    peak = {n: row["peak"] for n, row in rest.items()}
    bare = {n: value - sizes["mib"][str(n)]["waveforms"] for n, value in peak.items()}
    cells = {(name, n): f"{sizes['mib'][str(n)][name]:.0f}" for name in names for n in batches}
    cells |= {("peak", n): f"{value:.0f}" for n, value in peak.items()}
    cells |= {("peak without waveforms", n): f"{value:.0f}" for n, value in bare.items()}
    text = [
        "What grows with the batch, in MiB: the waveforms; one copy of the embeddings in fp32 (the cache, its join, "
        "unit rows and gradients are several); one N x N matrix of scores (InfoNCE and its gradient hold several); the "
        "winners that the op keeps for its backward (a byte for each frame and caption, none beyond "
        "the budget of `save_index`); and the naive einsum's scores (it holds them more than once). Clips have "
        f"{sizes['frames']} frames, captions up to {sizes['tokens']} tokens. The last columns are measured, fused and "
        "cached.",
        _table(batches, [*names, "peak", "peak without waveforms"], lambda name, n: cells.get((name, n), "")),
    ]
    if len(peak) > 1:
        first, last = min(peak), max(peak)
        text.append(
            f"From {first} to {last} clips, {last / first:.0f} times the batch, the peak of the fused cached run "
            f"becomes {peak[last] / peak[first]:.2f} times as large, and without waveforms "
            f"{bare[last] / bare[first]:.2f} times."
        )
    return text


def _profile(part: dict) -> list[str]:
    rows = part["rows"]
    labels = [
        f"{'cached by ' + str(row['micro_batch']) if row['micro_batch'] else 'at once'}, "
        f"{row['workers']} loader{'' if row['workers'] == 1 else 's'}"
        for row in rows
    ]
    totals = {}
    for row in rows:
        for name, seconds in row["stages"].items():
            totals[name] = totals.get(name, 0) + seconds
    lines = ["| stage | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(rows)]
    for name in sorted(totals, key=totals.get, reverse=True):
        lines.append(f"| {name} | " + " | ".join(_share(row, row["stages"].get(name)) for row in rows) + " |")
    lines.append("| whole step | " + " | ".join(_share(row, row["step_seconds"]) for row in rows) + " |")
    for name in sorted({name for row in rows for name in row["ops"]}):
        lines.append(f"| of it `{name}` | " + " | ".join(_share(row, row["ops"].get(name)) for row in rows) + " |")
    return [
        f"## Where the time of a step goes, batch {rows[0]['batch']}",
        f"Mean seconds of {rows[0]['steps']} steps after a warm-up step, and the share of the whole. Fused op. Stages "
        "follow one another and add up to the step; the backward of a part begins where the gradient of its output "
        "comes, that of the audio encoder includes the clipping of gradients. With 0 loaders the trainer reads the "
        "files itself, with 1 a process reads ahead meanwhile and takes its share of the cores. Validation and "
        "checkpoints are left out. Lines with `atk::` are parts of the loss's two stages, by torch.profiler, whose "
        "cost is in all lines.",
        "\n".join(lines),
        _where(part),
    ]


def _share(row: dict, seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3f} ({100 * seconds / row['step_seconds']:.1f} %)"


def _where(part: dict) -> str:
    return "Measured: " + ", ".join(f"{name}: {value}" for name, value in part["environment"].items()) + "."


def draw(path: Path, part: dict) -> None:
    """Memory and time of a step against the batch, log axes; a cross marks the batch at which a way fails."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    memory, seconds = figure.subplots(1, 2)
    memory.axhline(part["limit_gib"] * 1024, color="grey", linewidth=1, label="limit of a process")
    for number, (name, (colour, line)) in enumerate(STYLES.items()):
        rows = [row for row in part["rows"] if row["series"] == name]
        good = [row for row in rows if row["status"] == "ok"]
        style = {"color": colour, "linestyle": line, "marker": "o", "markersize": 4, "label": name}
        n = [row["batch"] for row in good]
        memory.plot(n, [row["peak"] for row in good], **style)
        seconds.plot(n, [statistics.median(row["step_seconds"]) for row in good], **style)
        for axes in (memory, seconds):
            _mark_failure(axes, rows, 0.97 - 0.05 * number, colour)
        if name == "fused, cached":
            bare = [row["peak"] - part["sizes"]["mib"][str(row["batch"])]["waveforms"] for row in good]
            memory.plot(n, bare, color=colour, linestyle=":", label=f"{name}, without waveforms")
    for axes, label in ((memory, "peak memory of the trainer, MiB"), (seconds, "seconds of a step")):
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel=label)
        axes.set_xticks(sorted({row["batch"] for row in part["rows"]}), minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.xaxis.minorticks_off()
        axes.set_ylim(top=3 * axes.get_ylim()[1])  # room for the crosses
        axes.grid(alpha=0.3)
    memory.legend(fontsize=7, loc="center right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _mark_failure(axes: "Axes", rows: list[dict], height: float, colour: str) -> None:
    """A cross above the batch at which the rows of a way fail, at this share of the height, and its words."""
    for row in rows:
        if row["status"] in ("ok", "not tried"):
            continue
        axes.plot(row["batch"], height, "x", color=colour, transform=axes.get_xaxis_transform())
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right", "va": "center"}
        words = f"{row['series']}: {row['status']}"
        axes.annotate(words, (row["batch"], height), (-6, 0), fontsize=7, color=colour, **place)
