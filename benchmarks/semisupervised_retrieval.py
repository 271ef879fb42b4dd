"""Compare mappers and ablations over several seeds; a tenth of the clips have captions, the rest are unlabeled audio.

python benchmarks/semisupervised_retrieval.py            # continues where it was interrupted
"""

import csv
import re
from pathlib import Path

import yaml

from atk.eval.retrieval import SplitEmbedding, embed_split, evaluate_retrieval
from atk.models.clap import CLAP
from experiments import (
    audio_of_clips,
    captioned_clips,
    comparison_parser,
    finished,
    flags,
    joined_page,
    listed,
    mean_and_spread,
    run_atk,
    train_all,
    training_time,
    write_results,
)

CAPTIONED = 0.1  # fraction of the clips that keep their captions
SUPERVISED = {"loss.mix_weight": 0.0, "loss.unlabeled_weight": 0.0}
MLP = {"mapper.kind": "mlp"}
UPPER = "all captions (upper bound)"
ARMS = {
    "supervised only": SUPERVISED,
    "MLP-a2t": MLP,
    "Transformer-a2t, L = 1": {"mapper.kind": "transformer", "mapper.tokens": 1},
    "Transformer-a2t, L = 2": {"mapper.kind": "transformer", "mapper.tokens": 2},
    "Transformer-a2t, L = 4": {"mapper.kind": "transformer", "mapper.tokens": 4},
    "MLP-a2t without noise": MLP | {"mapper.noise": 0.0},
    "MLP-a2t without L_unlabeled": MLP | {"loss.unlabeled_weight": 0.0},
    UPPER: SUPERVISED,
}
PRETRAINING_SCENES = {"preset": "easy", "classes": 36, "seconds": [3.0, 3.0], "train": 5000, "test": 300, "seed": 5}
PRETRAINING_RUN = {
    "steps": 400, "batch_size": 64, "precision": "bf16", "eval_every": 0, "save_every": 100, "clip_seconds": 3.0,
    "optim.lr": 1e-3, "loss.temperature": 0.07, "loss.learnable": "true",
    "model.audio.frame_layer": 1, "model.text.token_layer": 0, "model.audio.dropout": 0, "model.text.dropout": 0,
    "model.audio.channels": [8, 16, 32, 64], "model.audio.hop": 400,
}  # fmt: skip
SCENES = {
    "preset": "medium", "classes": 36, "events": [1, 2], "seconds": [3.0, 3.0],
    "train": 3000, "val": 200, "test": 500, "seed": 1,
}  # fmt: skip
CLIP_SECONDS = 3.0
RUN = {
    "batch_size": 32, "precision": "fp32", "eval_every": 20, "save_every": 60, "clip_seconds": CLIP_SECONDS,
    "optim.lr": 3e-4, "loss.temperature": 0.07, "loss.learnable": "true",
}  # fmt: skip
DIRECTIONS = ("text_to_audio", "audio_to_text")
COLUMNS = [f"{direction} {name}" for direction in DIRECTIONS for name in ("R@1", "R@5", "R@10", "mAP@10")]


def split(
    folder: Path, captioned: float = CAPTIONED, links: tuple[str, ...] = ("val.csv", "test.csv", "audio")
) -> tuple[Path, Path]:
    """Create a folder with the captioned clips and links to other files, and one with the audio of all other clips."""
    data, labeled, unlabeled = folder / "data", folder / "labeled", folder / "unlabeled"
    with (data / "train.csv").open(newline="") as file:
        kept = round(captioned * sum(1 for _ in csv.DictReader(file)))
    captioned_clips(data, labeled, kept, links)
    audio_of_clips(data, unlabeled, slice(kept, None))
    return labeled, unlabeled


def plan(folder: Path, seeds: int, steps: int, unlabeled: Path) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and settings of every arm and seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, options in ARMS.items():
            name = "-".join(re.findall("[a-z0-9]+", arm.lower()))
            common: dict[str, object] = {"steps": steps, "seed": seed, "init": str(folder / "first")}
            if options != SUPERVISED:
                common["unlabeled"] = [str(unlabeled)]
            runs[arm, seed] = folder / f"{name}-{seed}", RUN | common | options
    return runs


def values_before(folder: Path) -> dict[str, float]:
    """Retrieval metrics of the pretrained model, from which all arms start."""
    return values_of(evaluate_retrieval(*start_of(folder)))


def start_of(folder: Path) -> tuple[CLAP, SplitEmbedding]:
    """The pretrained model, and its embeddings of the test clips."""
    model = CLAP.from_pretrained(folder / "first").eval()
    return model, embed_split(model, folder / "data", "test", clip_seconds=CLIP_SECONDS)


def values_of(metrics: dict) -> dict[str, float]:
    """Values of the table's columns in the metrics of an evaluation."""
    return {column: metrics[column.split()[0]][column.split()[1]] for column in COLUMNS}


def rows_of(runs: dict[tuple[str, int], tuple[Path, dict]]) -> list[dict]:
    """One row per run, for the seeds that are finished in every arm."""
    summaries = finished(runs)
    unfinished = {seed for _, seed in runs.keys() - summaries.keys()}
    rows = []
    for (arm, seed), summary in summaries.items():
        if seed not in unfinished:
            rows.append({"arm": arm, "seed": seed, "seconds": summary["seconds"], **values_of(summary["metrics"])})
    return rows


def table(rows: list[dict], before: dict[str, float]) -> str:
    """Mean (standard deviation) over the seeds, one arm per line."""
    heads = [column.replace("text_to_audio", "t2a").replace("audio_to_text", "a2t") for column in COLUMNS]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines.append("| before fine-tuning | " + " | ".join(f"{before[column]:.1f}" for column in COLUMNS) + " |")
    for arm in ARMS:
        rows_of_arm = [row for row in rows if row["arm"] == arm]
        cells = []
        for column in COLUMNS if rows_of_arm else ():
            values = [row[column] for row in rows_of_arm]
            cells.append(mean_and_spread(values))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the table, its interpretation, and the environment."""
    scenes = record["scenes"]
    labeled = round(CAPTIONED * scenes["train"])
    parts = [
        "# Retrieval with a tenth of the captions and unlabeled audio",
        (f"Synthetic soundscapes: {scenes['train']} clips for training and {scenes['test']} held out. {labeled} clips "
        f"keep their captions and the other {scenes['train'] - labeled} are unlabeled audio; the upper bound has all "
        "captions. All arms start from the same model, trained on other, easier scenes, and are fine-tuned with "
        "the same number of steps and, except for the upper bound, the same batches of captioned clips. The checkpoint "
        f"is selected by mAP@10 on {scenes['val']} captioned scenes. Mean and standard deviation over "
        f"{record['seeds']} seeds, in percent; retrieval uses the cosine of global vectors."),
        record["table"],
        record["interpretation"],
        f"Pretraining: {listed(PRETRAINING_SCENES | PRETRAINING_RUN)}.",
        f"Run: {listed(record['run'])}; scenes: {listed(SCENES)}.",
        training_time(record),
    ]  # fmt: skip
    return joined_page(parts, "python benchmarks/semisupervised_retrieval.py", record)


def main() -> None:
    options = comparison_parser(__doc__, "semisupervised", steps=120).parse_args()
    folder = options.runs
    runs = plan(folder, options.seeds, options.steps, folder / "unlabeled")
    if not options.report:
        run_atk("soundscapes", folder / "data", *flags(SCENES))
        run_atk("soundscapes", folder / "first-data", *flags(PRETRAINING_SCENES))
        train_all("aligned", folder / "first-data", {folder / "first": PRETRAINING_RUN})
        split(folder)
        for data, all_captions in (("labeled", False), ("data", True)):
            selected = [run for (arm, _), run in runs.items() if (arm == UPPER) == all_captions]
            train_all("semisupervised", folder / data, dict(selected), options.jobs)
    rows = rows_of(runs)
    if not rows:
        raise SystemExit(f"no seed in {options.runs} is finished in every arm")
    record = {
        "scenes": yaml.safe_load((folder / "data" / "soundscapes.yaml").read_text()),
        "run": RUN | {"steps": options.steps},
        "seeds": len({row["seed"] for row in rows}),
        "table": table(rows, values_before(folder)),
        "rows": rows,
    }
    stem = options.results / "semisupervised_retrieval"
    write_results(stem, record, render_page, options.interpretation, options.jobs, options.report)
    print(record["table"])


if __name__ == "__main__":
    main()
