"""Compare the global loss with the global + aligned loss (3.7), with the same data, steps, and seeds.

python benchmarks/aligned_vs_global.py                     # continues where it was interrupted
python benchmarks/aligned_vs_global.py --events FOLDER     # shorter runs on scenes composed from recordings
"""

import re
from pathlib import Path

import yaml

from experiments import (
    LAST_LAYERS,
    comparison_parser,
    difference,
    finished,
    flags,
    joined_page,
    listed,
    mean_and_interval,
    run_atk,
    train_all,
    write_results,
)

LOW_FRAMES, LOW_TOKENS = {"model.audio.frame_layer": 1}, {"model.text.token_layer": 0}
ALIGNED = {"loss.aligned_weight": 1.0, **LAST_LAYERS}
ARMS = {
    "global": {"loss.aligned_weight": 0.0, **LAST_LAYERS},
    "global + aligned": ALIGNED,
    "global + aligned, low layers": ALIGNED | LOW_FRAMES | LOW_TOKENS,
}
BASELINE = "global + aligned"
RECORDED_ARMS = ARMS | {
    "global + aligned, low frames": ALIGNED | LOW_FRAMES,
    "global + aligned, low tokens": ALIGNED | LOW_TOKENS,
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
RECORDED_SCENES = {"preset": "easy", "seconds": [3.0, 4.0], "train": 400, "test": 200, "twins": 50, "seed": 1}
RECORDED_RUN = RUN | {
    "steps": 300, "batch_size": 24, "precision": "fp32", "save_every": 100, "clip_seconds": 4.0, "workers": 0,
    "device": "cpu",
}  # fmt: skip
COLUMNS = {
    **{f"t2a {name}": ("text_to_audio", name) for name in ("R@1", "R@5", "R@10", "mAP@10", "MedR")},
    **{f"a2t {name}": ("audio_to_text", name) for name in ("R@1", "R@5", "R@10", "mAP@10", "MedR")},
    "twins, global": ("twins", "global"),
    "twins, max-mean": ("twins", "max_mean"),
    "alignment": ("alignment", "right"),
}


def plan(
    folder: Path, seeds: int, steps: int, arms: dict[str, dict] = ARMS, run: dict = RUN
) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and settings of every arm and seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, settings in arms.items():
            name = f"{re.sub('[^a-z]+', '-', arm)}-{seed}"
            runs[arm, seed] = folder / name, run | {"steps": steps, "seed": seed, **settings}
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
    """Mean and interval over the seeds of each arm, one metric per line; then the gain over the baseline per seed."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    lines = ["| metric | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
    for column in (*COLUMNS, "seconds"):
        cells = [mean_and_interval(row[column] for row in rows if row["arm"] == arm) for arm in arms]
        lines.append(f"| {column} | " + " | ".join(cells) + " |")
    others = [arm for arm in arms if arm != BASELINE]
    lines += ["", f"| minus {BASELINE} | {' | '.join(others)} |", "|---|" + "---|" * len(others)]
    for column in COLUMNS:
        lines.append(f"| {column} | {' | '.join(difference(rows, arm, BASELINE, column) for arm in others)} |")
    return "\n".join(lines)


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the table, its interpretation, and the environment."""
    scenes, run, rows = record["scenes"], record["run"], record["rows"]
    recorded = bool(scenes.get("recordings"))
    origin = "Scenes composed from recordings, none of which is in two splits" if recorded else "Synthetic soundscapes"
    parts = [
        "# Global loss against global + aligned loss" + (", on recordings" if recorded else ""),
        (
            f"{origin}: {scenes['train']} for training and {scenes['test']} held out, with "
            f"{scenes['twins']} pairs of twins among them (the same events in opposite order). All arms use the same "
            f"model, steps, and batches. Mean over {len({row['seed'] for row in rows})} seeds ± half the width of its "
            "95 % interval (Student's t), in percent except for MedR; then the paired difference from "
            f'"{BASELINE}". Retrieval uses the cosine of global vectors.'
        ),
        table(rows),
        (
            "Low layers: frames from the audio encoder's first layer and tokens from the word embeddings; otherwise "
            "both from the last layers, as in the thesis. `twins`: captions that score their own clip above its twin "
            "(chance: 50). `alignment`: phrases whose best frame is inside their event (chance: "
            f"{record['alignment_chance']:.0f})."
        ),
        record["interpretation"],
        f"Run: {listed(run)}.",
    ]
    return joined_page(parts, f"python benchmarks/aligned_vs_global.py{' --events FOLDER' if recorded else ''}", record)


def main() -> None:
    parser = comparison_parser(__doc__, "aligned_vs_global", RUN["steps"])
    parser.add_argument("--events", type=Path, help="compose the scenes from the recordings in this folder")
    options = parser.parse_args()
    arms, run, scenes, name = ARMS, RUN, SCENES, "aligned_vs_global"
    if options.events:
        arms, run, name = RECORDED_ARMS, RECORDED_RUN, f"{name}_recorded"
        scenes = RECORDED_SCENES | {"recordings": options.events}
        parser.set_defaults(runs=Path("runs") / name, steps=run["steps"])
        options = parser.parse_args()
    data = options.runs / "data"
    runs = plan(options.runs, options.seeds, options.steps, arms, run)
    if not options.report:
        run_atk("soundscapes", data, *flags(scenes))
        train_all("aligned", data, dict(runs.values()), options.jobs)
    rows = rows_of(runs)
    if not rows:
        raise SystemExit(f"no seed in {options.runs} is finished in every arm")
    written = yaml.safe_load((data / "soundscapes.yaml").read_text())
    record = {
        "scenes": written | {"recordings": Path(written.get("recordings", "")).name},
        "run": run | {"steps": options.steps},
        "alignment_chance": rows[0]["alignment chance"],
        "rows": rows,
    }
    write_results(options.results / name, record, render_page, options.interpretation, options.jobs, options.report)
    print(table(rows))


if __name__ == "__main__":
    main()
