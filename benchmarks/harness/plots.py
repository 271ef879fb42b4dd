"""Plots of the sweeps: time and memory against batch, length, or width on log axes, with the limit as a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atk.bench.measure import OK, OUT_OF_MEMORY
from atk.bench.report import Table
from atk.bench.sizes import AXES

LABELS = {  # (op, axis): field of the shape, label of the axis
    ("max_mean_similarity", "batch"): ("clips", "clips and captions"),
    ("max_mean_similarity", "length"): ("frames", "frames per clip"),
    ("aligned_info_nce", "batch"): ("clips", "pairs"),
    ("aligned_info_nce", "length"): ("frames", "frames per clip"),
    ("info_nce", "batch"): ("pairs", "pairs"),
    ("sigmoid_loss", "batch"): ("pairs", "pairs"),
    ("cross_attention_difference", "batch"): ("batch", "inputs"),
    ("cross_attention_difference", "length"): ("frames", "frames"),
    ("aligned_train_step", "batch"): ("pairs", "pairs"),
    ("aligned_train_step", "length"): ("seconds", "seconds per clip"),
}


def plot_sweeps(tables: Sequence[Table], folder: Path, prefix: str) -> list[str]:
    """Write one picture for each op, mode, dtype, and axis that has several tables, and return the file names.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    groups: dict[tuple[str, str, str, str], list[Table]] = {}
    for table in tables:
        if table.size in AXES:
            groups.setdefault((table.op, table.kind, table.dtype, table.size), []).append(table)
    names = []
    for (op, mode, dtype, axis), group in groups.items():
        if len(group) > 1:
            names.append(f"{prefix}_{op}_{mode}_{dtype}_{axis}.png")
            _plot(group, *LABELS.get((op, axis), ("channels", "channels")), folder / names[-1])
    return names


def _plot(tables: Sequence[Table], field: str, label: str, path: Path) -> None:
    from matplotlib.figure import Figure

    tables = sorted(tables, key=lambda table: table.shape[field])
    figure = Figure(figsize=(11, 5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    limit = [(table.shape[field], table.rows[-1].median_ms) for table in tables]
    time.plot(*zip(*limit, strict=True), "k--", label="limit")
    providers = dict.fromkeys(row.provider for table in tables for row in table.rows[:-1])
    for index, name in enumerate(providers):
        rows = [(table.shape[field], row) for table in tables for row in table.rows if row.provider == name]
        timed = [(x, row) for x, row in rows if row.status == OK]
        if not timed:
            continue
        too_large = [x for x, row in rows if row.status == OUT_OF_MEMORY]
        text = f"{name} (out of memory from {min(too_large):g})" if too_large else name
        style: dict[str, Any] = {"color": f"C{index % 10}", "marker": "osv^D"[index // 10 % 5], "markersize": 4}
        style |= {"label": text, "linewidth": 2.2 if name.startswith("atk") else 1.0}
        x = [x for x, _ in timed]
        p20, median, p80 = np.transpose([row.quantiles for _, row in timed])
        time.errorbar(x, median, yerr=[median - p20, p80 - median], **style)
        memory.plot(x, [max(row.peak_mib or 0.0, 0.1) for _, row in timed], **style)
    ticks = [table.shape[field] for table in tables]
    for axes, quantity in ((time, "median time, ms"), (memory, "peak extra memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel=quantity)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(f"{tables[0].op}, {tables[0].kind}, {tables[0].dtype}")
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, dpi=110)
