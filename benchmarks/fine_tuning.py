"""Compare ways of fine-tuning a small model on 200 scenes of another kind than those that it was trained on.

python benchmarks/fine_tuning.py            # continues where it was interrupted
"""

import re
from pathlib import Path
from typing import Any

import yaml

from atk.data import open_data
from atk.eval.retrieval import EvalSplit, evaluate_retrieval
from atk.models.clap import CLAP
from experiments import (
    comparison_parser,
    finished,
    flags,
    joined_page,
    listed,
    mean_and_interval,
    run_atk,
    train_all,
    write_results,
)

# Many clean scenes; then few noisy ones, with events that are hard to tell apart and words for pitch and loudness.
FIRST = {"preset": "easy", "seconds": [2.0, 3.0], "train": 3000, "test": 50, "seed": 1}
SECOND = {
    "preset": "medium", "seconds": [2.7, 3.0], "train": 200, "test": 500, "seed": 2, "similar": "true",
    "snr_db": [0.0, 10.0], "backgrounds": '["babble", "hum"]', "pitch": "true", "loudness": "true",
}  # fmt: skip
MODEL = {
    "model.audio.channels": [8, 16, 32, 32], "model.audio.hop": 400, "model.audio.mel_bins": 48,
    "model.audio.layers": 2, "model.audio.dropout": 0, "model.text.dropout": 0,
    "model.audio.frame_layer": 1, "model.text.token_layer": 0,
}  # fmt: skip
RUN: dict[str, Any] = {"batch_size": 32, "clip_seconds": 3.0, "precision": "fp32", "eval_every": 0, "save_every": 1000}
TRAINING = RUN | MODEL | {"steps": 400, "optim.lr": 1e-3, "loss.temperature": 0.07, "loss.learnable": "true"}
TOWERS = '["audio_encoder.*", "text_encoder.*"]'
# Of two learning rates per arm, 1e-3 and 3e-3 or 3e-4 and 1e-3, the one with the better mAP@10 on seed 0.
ARMS = {
    "projections only": {"optim.lr": 3e-3, "tune.freeze": TOWERS},
    "LoRA, rank 8": {"optim.lr": 1e-3, "tune.lora.rank": 8},
    "everything": {"optim.lr": 3e-4},
    "everything, layer decay 0.75": {"optim.lr": 1e-3, "optim.layer_decay": 0.75},
}
BEFORE = "not fine-tuned"
GAIN = "gain in mAP@10"
COLUMNS = [(group, name) for group in ("text_to_audio", "audio_to_text") for name in ("R@1", "R@10", "mAP@10")]


def plan(folder: Path, seeds: int, steps: int) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and settings of every arm and seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, settings in ARMS.items():
            name = f"{re.sub('[^A-Za-z0-9]+', '-', arm)}-{seed}"
            start = {"init": str(folder / f"first-{seed}")}
            runs[arm, seed] = folder / name, RUN | {"steps": steps, "seed": seed, **settings, **start}
    return runs


def without_fine_tuning(model: Path, data: Path) -> dict[str, dict[str, float]]:
    """Retrieval metrics on the second kind of scenes of the model trained on the first kind."""
    clap = CLAP.from_pretrained(model)
    split = EvalSplit(
        open_data(str(data)),
        "test",
        side_files=False,
        sample_rate=clap.sample_rate,
        clip_seconds=RUN["clip_seconds"],
        batch_size=RUN["batch_size"],
        workers=1,
        on_error="raise",
    )
    return evaluate_retrieval(clap, split.embed(clap))


def rows_of(runs: dict[tuple[str, int], tuple[Path, dict]], folder: Path, data: Path) -> list[dict]:
    """One row per run, for the seeds that are finished in every arm, and one per model that is not fine-tuned."""
    summaries = finished(runs)
    complete = {seed for _, seed in runs} - {seed for _, seed in runs.keys() - summaries.keys()}
    rows = [
        {"arm": arm, "seed": seed, "seconds": summary["seconds"], "metrics": summary["metrics"]}
        for (arm, seed), summary in summaries.items()
        if seed in complete
    ]
    for seed in sorted(complete):
        metrics = without_fine_tuning(folder / f"first-{seed}", data)
        rows.append({"arm": BEFORE, "seed": seed, "seconds": 0.0, "metrics": metrics})
    for row in rows:
        metrics = row.pop("metrics")
        row |= {f"{group} {name}": metrics[group][name] for group, name in COLUMNS}
    return rows


def table(rows: list[dict]) -> str:
    """Mean with a 95 % interval over the seeds, one arm per line."""
    columns = [f"{group} {name}" for group, name in COLUMNS]
    titles = [column.replace("text_to_audio", "t2a").replace("audio_to_text", "a2t") for column in columns]
    lines = ["| | " + " | ".join((*titles, GAIN)) + " |", "|---|" + "---|" * (len(titles) + 1)]
    start = {row["seed"]: mean_precision(row) for row in rows if row["arm"] == BEFORE}
    for arm in (BEFORE, *ARMS):
        members = [row for row in rows if row["arm"] == arm]
        cells = [mean_and_interval([row[column] for row in members]) for column in columns]
        gain = "" if arm == BEFORE else mean_and_interval([mean_precision(row) - start[row["seed"]] for row in members])
        lines.append(f"| {arm} | " + " | ".join((*cells, gain)) + " |")
    return "\n".join(lines)


def mean_precision(row: dict) -> float:
    """mAP@10, averaged over both directions."""
    return (row["text_to_audio mAP@10"] + row["audio_to_text mAP@10"]) / 2


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the table, its interpretation, and the environment."""
    rows = record["rows"]
    seeds = len({row["seed"] for row in rows})
    learning_rates = ", ".join(f"{arm} {settings['optim.lr']:g}" for arm, settings in ARMS.items())
    parts = [
        "# Ways of fine-tuning",
        (
            f"A small model is trained on {FIRST['train']:,} clean synthetic scenes and fine-tuned on "
            f"{SECOND['train']} noisy ones with similar events and words for pitch and loudness, then tested on "
            f"{SECOND['test']} scenes of the second kind, in percent. Each of the {seeds} seeds has a first model of "
            "its own, from which every arm starts. ± is half of a 95 % interval of the mean by Student's t. The last "
            "column is the gain over the first model in the same seed, with mAP@10 averaged over both directions."
        ),
        table(rows),
        record["interpretation"],
        (
            f"Learning rates: {learning_rates}. Two were tried per arm on seed 0 (1e-3 and 3e-3 for the projections "
            "and LoRA, 3e-4 and 1e-3 for everything), and the one with the better mAP@10 was taken."
        ),
        f"First training: {listed(record['first'])}. Fine-tuning: {listed(record['run'])}.",
    ]
    return joined_page(parts, "python benchmarks/fine_tuning.py", record)


def main() -> None:
    options = comparison_parser(__doc__, "fine_tuning", 100).parse_args()
    folder = options.runs
    runs = plan(folder, options.seeds, options.steps)
    if not options.report:
        for name, scenes in (("first", FIRST), ("second", SECOND)):
            run_atk("soundscapes", folder / "data" / name, *flags(scenes))
        first = {folder / f"first-{seed}": TRAINING | {"seed": seed} for seed in range(options.seeds)}
        train_all("aligned", folder / "data" / "first", first, options.jobs)
        train_all("aligned", folder / "data" / "second", dict(runs.values()), options.jobs)
    rows = rows_of(runs, folder, folder / "data" / "second")
    if not rows:
        raise SystemExit(f"no seed in {folder} is finished in every arm")
    scenes = {
        name: yaml.safe_load((folder / "data" / name / "soundscapes.yaml").read_text()) for name in ("first", "second")
    }
    record = {"scenes": scenes, "first": TRAINING, "run": RUN | {"steps": options.steps}, "rows": rows}
    write_results(
        options.results / "fine_tuning", record, render_page, options.interpretation, options.jobs, options.report
    )
    print(table(rows))


if __name__ == "__main__":
    main()
