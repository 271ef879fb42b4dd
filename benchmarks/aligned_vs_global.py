"""Compare the global loss with the global + aligned loss (3.7), with the same data, steps, and seeds.

python benchmarks/aligned_vs_global.py            # continues where it was interrupted
"""

import re
from pathlib import Path

import yaml

from experiments import comparison_parser, finished, flags, mean_and_spread, run_atk, train_all, write_results

LOW_LAYERS = {"model.audio.frame_layer": 1, "model.text.token_layer": 0}
ARMS = {
    "global": {"loss.aligned_weight": 0.0},
    "global + aligned": {"loss.aligned_weight": 1.0},
    "global + aligned, low layers": {"loss.aligned_weight": 1.0, **LOW_LAYERS},
}
SCENES = {
    "preset": "medium", "attribute_rate": 0.3, "seconds": [3.0, 4.5],
    "train": 6000, "test": 1000, "twins": 150, "seed": 1,
}  # fmt: skip
RUN = {
    "steps": 600, "batch_size": 64, "precision": "bf16", "eval_every": 0, "save_every": 300,
    "optim.lr": 1e-3, "loss.temperature": 0.07, "loss.learnable": "true",
    "model.audio.dropout": 0, "model.text.dropout": 0,
}  # fmt: skip
COLUMNS = {
    **{f"t2a {name}": ("text_to_audio", name) for name in ("R@1", "R@5", "R@10", "mAP@10", "MedR")},
    **{f"a2t {name}": ("audio_to_text", name) for name in ("R@1", "R@5", "R@10", "mAP@10", "MedR")},
    "twins, global": ("twins", "global"),
    "twins, max-mean": ("twins", "max_mean"),
    "alignment": ("alignment", "right"),
}


def plan(folder: Path, seeds: int, steps: int) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and settings of every arm and seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, settings in ARMS.items():
            name = f"{re.sub('[^a-z]+', '-', arm)}-{seed}"
            runs[arm, seed] = folder / name, RUN | {"steps": steps, "seed": seed, **settings}
    return runs


def rows_of(runs: dict[tuple[str, int], tuple[Path, dict]]) -> list[dict]:
    """One row per run, for the seeds that are finished in every arm."""
    summaries = finished(runs)
    unfinished = {seed for _, seed in runs.keys() - summaries.keys()}
    rows = []
    for (arm, seed), summary in summaries.items():
        if seed in unfinished:
            continue
        metrics = summary["metrics"]
        values = {column: metrics[group][name] for column, (group, name) in COLUMNS.items()}
        chance = {"alignment chance": metrics["alignment"]["chance"]}
        rows.append({"arm": arm, "seed": seed, "seconds": summary["seconds"], **values, **chance})
    return rows


def table(rows: list[dict]) -> str:
    """Mean (standard deviation) over the seeds of each arm, one metric per line."""
    lines = ["| metric | " + " | ".join(ARMS) + " |", "|---|" + "---|" * len(ARMS)]
    for column in (*COLUMNS, "seconds"):
        cells = []
        for arm in ARMS:
            values = [row[column] for row in rows if row["arm"] == arm]
            cells.append(mean_and_spread(values))
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the table, its interpretation, and the environment."""
    scenes, run, rows = record["scenes"], record["run"], record["rows"]
    settings = ", ".join(f"{name} {value}" for name, value in run.items())
    parts = [
        "# Global loss against global + aligned loss",
        (
            f"Synthetic soundscapes: {scenes['train']} for training and {scenes['test']} held out, with "
            f"{scenes['twins']} pairs of twins among them (the same events in opposite order). All arms use the same "
            f"model, steps, and batches. Mean and standard deviation over {len(rows) // len(ARMS)} seeds, in percent "
            "except for MedR; retrieval uses the cosine of global vectors."
        ),
        table(rows),
        (
            "Low layers: frames from the audio encoder's first layer and tokens from the word embeddings; otherwise "
            "both from the last layers, as in the thesis. `twins`: captions that score their own clip above its twin "
            "(chance: 50). `alignment`: phrases whose best frame is inside their event (chance: "
            f"{record['alignment_chance']:.0f})."
        ),
        record["interpretation"],
        f"Run: {settings}.",
        "Command: `python benchmarks/aligned_vs_global.py`.",
        ", ".join(f"{name}: {value}" for name, value in record["environment"].items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    options = comparison_parser(__doc__, "aligned_vs_global", RUN["steps"]).parse_args()
    data = options.runs / "data"
    runs = plan(options.runs, options.seeds, options.steps)
    if not options.report:
        run_atk("soundscapes", data, *flags(SCENES))
        train_all("aligned", data, dict(runs.values()), options.jobs)
    rows = rows_of(runs)
    if not rows:
        raise SystemExit(f"no seed in {options.runs} is finished in every arm")
    record = {
        "scenes": yaml.safe_load((data / "soundscapes.yaml").read_text()),
        "run": RUN | {"steps": options.steps},
        "alignment_chance": rows[0]["alignment chance"],
        "rows": rows,
    }
    stem = options.results / "aligned_vs_global"
    write_results(stem, record, render_page, options.interpretation, options.jobs, options.report)
    print(table(rows))


if __name__ == "__main__":
    main()
