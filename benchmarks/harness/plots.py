"""Plots of the sweeps: time and memory against batch, length and width on log axes, the limit as a line."""

from collections.abc import Sequence
from pathlib import Path

from atk.bench.measure import OK, OUT_OF_MEMORY
from atk.bench.report import Table
from atk.bench.sizes import AXES

LABELS = {
    ("max_mean_similarity", "batch"): ("clips", "clips, and captions"),
    ("max_mean_similarity", "length"): ("frames", "frames of a clip"),
    ("aligned_info_nce", "batch"): ("clips", "pairs"),
    ("aligned_info_nce", "length"): ("frames", "frames of a clip"),
    ("info_nce", "batch"): ("pairs", "pairs"),
    ("cross_attention_difference", "batch"): ("batch", "inputs"),
    ("cross_attention_difference", "length"): ("frames", "frames"),
    ("aligned_train_step", "batch"): ("pairs", "pairs"),
    ("aligned_train_step", "length"): ("seconds", "seconds of a clip"),
}


def plot_sweeps(tables: Sequence[Table], folder: Path, prefix: str) -> list[str]:
    """Writes one picture for each op, kind, dtype and axis that has several tables; returns their names.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib

    matplotlib.use("Agg")
    groups = {}
    for table in tables:
        if table.size in AXES:
            groups.setdefault((table.op, table.kind, table.dtype, table.size), []).append(table)
    names = []
    for (op, kind, dtype, axis), group in groups.items():
        if len(group) > 1:
            names.append(f"{prefix}_{op}_{kind}_{dtype}_{axis}.png")
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
    for number, name in enumerate(providers):
        rows = [(table.shape[field], row) for table in tables for row in table.rows if row.provider == name]
        right = [(x, row) for x, row in rows if row.status == OK]
        if not right:
            continue
        full = [x for x, row in rows if row.status == OUT_OF_MEMORY]
        text = f"{name} (out of memory from {min(full):g})" if full else name
        style = {"color": f"C{number % 10}", "marker": "osv^D"[number // 10 % 5], "markersize": 4, "label": text}
        style["linewidth"] = 2.2 if name.startswith("atk") else 1.0
        x = [x for x, _ in right]
        spread = [[r.median_ms - r.p20_ms for _, r in right], [r.p80_ms - r.median_ms for _, r in right]]
        time.errorbar(x, [row.median_ms for _, row in right], yerr=spread, **style)
        memory.plot(x, [max(row.peak_mib, 0.1) for _, row in right], **style)
    ticks = [table.shape[field] for table in tables]
    for axes, quantity in ((time, "median time, ms"), (memory, "peak extra memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel=label, ylabel=quantity)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(f"{tables[0].op}, {tables[0].kind}, {tables[0].dtype}")
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    figure.savefig(path, dpi=110)
