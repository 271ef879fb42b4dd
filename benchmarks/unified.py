"""Compare one model trained by all methods with a model for each method, at equal compute per run.

python benchmarks/unified.py            # continues where it was interrupted
"""

import json
import statistics
import time
from dataclasses import fields
from pathlib import Path

import torch
import yaml

from atk.cli.commands import parse
from atk.train.trainer import Trainer
from experiments import (
    comparison_parser,
    finished,
    flags,
    joined_page,
    listed,
    mean_and_interval,
    run_atk,
    run_name,
    train_all,
    write_results,
)
from semisupervised_retrieval import split

CAPTIONED = 0.3  # fraction of the clips that keep their captions
SCENES = {
    "preset": "medium", "classes": 24, "events": [1, 2], "overlap": 0.5, "snr_db": [15, 25], "pitch": "false",
    "seconds": [3.0, 3.0], "captions_per_clip": 5, "rephrase": "true",
    "train": 3000, "val": 150, "test": 300, "pool": 24, "seed": 1,
}  # fmt: skip
LINKS = ("val.csv", "test.csv", "audio", "events.csv", "tags.csv", "soundscapes.yaml")
RUN = {
    "batch_size": 32, "precision": "fp32", "eval_every": 100, "save_every": 50, "clip_seconds": 3.0, "workers": 0,
    "optim.lr": 1e-3, "loss.temperature": 0.07, "loss.learnable": "true", "mapper.noise": 0.0,
    "mix.rate": 0.5, "mix.snr_db": [0, 6], "beams": 4, "device": "cpu",
    "model.audio.frame_layer": 1, "model.text.token_layer": 0, "model.audio.dropout": 0, "model.text.dropout": 0,
    "model.decoder.dropout": 0,
}  # fmt: skip
TERMS = ("global", "aligned", "mix", "unlabeled", "caption")
UNIFIED, MORE = "unified", "unified, more steps"
ARMS = {
    UNIFIED: TERMS,
    MORE: TERMS,  # as many as "captioning"
    "aligned": ("global", "aligned"),
    "semi-supervised": ("global", "mix", "unlabeled"),
    "captioning": ("caption",),
}
DIRECTIONS = ("text_to_audio", "audio_to_text")
EMBEDDINGS = {f"t2a {name}": ("text_to_audio", name) for name in ("R@1", "R@5", "R@10", "mAP@10")} | {
    f"a2t {name}": ("audio_to_text", name) for name in ("R@1", "mAP@10")
}
EMBEDDINGS["alignment"] = ("alignment", "right")
CAPTIONS = {
    "CIDEr, clip alone": ("input", "CIDEr", 100),
    "CIDEr, `Diff(mix, added)`": ("minus_added", "CIDEr", 100),
    "ROUGE-L, clip alone": ("input", "ROUGE-L", 100),
    "BLEU-4, clip alone": ("input", "BLEU-4", 100),
}
NAMED = {
    "names the clip's events, clip alone": ("input", "target"),
    "names an event of the clip and not the added one, `Diff(mix, added)`": ("minus_added", "target_alone"),
    "names the added event, `Diff(mix, clip)`": ("minus_input", "added"),
}
_TIMED_STEPS = 7  # of each arm, after one that is not timed


def settings(arm: str, folder: Path) -> dict[str, object]:
    """Settings of an arm: the weights of the terms that it does not train are 0."""
    off: dict[str, object] = {f"loss.{term}_weight": 0.0 for term in TERMS if term not in ARMS[arm]}
    if set(ARMS[arm]) & {"mix", "unlabeled"}:
        off["unlabeled"] = [str(folder / "unlabeled")]
    return RUN | off | {"mix.references": str(folder / "data" / "pool")}


def seconds_per_step(folder: Path) -> dict[str, float]:
    """CPU time of a training step of each arm on one thread: the median of steps in which the arms take turns."""
    from atk.train.unified import UnifiedTask
    from atk.train.unified_config import UnifiedConfig

    torch.set_num_threads(1)
    trainers = {}
    arms = [arm for arm in ARMS if arm != MORE]
    for arm in arms:
        out = folder / "timing" / arm
        command = ["train", "unified", "--data", folder / "labeled", "--out", out, *flags(settings(arm, folder))]
        values = parse([str(word) for word in command])[2]["unified"]
        config = UnifiedConfig(**{field.name: values[field.name] for field in fields(UnifiedConfig)})
        trainer = Trainer(UnifiedTask(config, torch.device("cpu")), config, torch.device("cpu"))
        trainers[arm] = trainer, trainer.task.batches(0)
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(_TIMED_STEPS + 1):
        for arm, (trainer, batches) in trainers.items():
            start = time.process_time()
            trainer.update(next(batches))  # a run also reads its batches
            times[arm].append(time.process_time() - start)
    return {arm: statistics.median(values[1:]) for arm, values in times.items()}


def steps_of(folder: Path, budget: float) -> dict[str, int]:
    """The number of steps of each arm in `budget` seconds of CPU time, measured once and then read from a file."""
    file = folder / "seconds_per_step.json"
    if not file.is_file():
        file.write_text(json.dumps(seconds_per_step(folder), indent=2) + "\n")
    steps = {arm: max(1, round(budget / seconds)) for arm, seconds in json.loads(file.read_text()).items()}
    return steps | {MORE: steps["captioning"]}


def plan(folder: Path, seeds: int, steps: dict[str, int]) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and settings of every arm and seed; those of a seed are next to each other, to compare them early."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm in ARMS:
            options = settings(arm, folder) | {"seed": seed, "steps": steps[arm]}
            runs[arm, seed] = folder / run_name(arm, seed), options
    return runs


def values_of(metrics: dict) -> dict[str, float]:
    """The values of the table in the metrics of a run, in percent."""
    values = {}
    if "text_to_audio" in metrics:
        values |= {column: metrics[group][name] for column, (group, name) in EMBEDDINGS.items()}
    captioning = metrics.get("captioning", {})
    for column, (mode, name, factor) in CAPTIONS.items():
        if name in captioning.get(mode, {}):
            values[column] = factor * captioning[mode][name]
    for column, (mode, name) in NAMED.items():
        if mode in captioning.get("named", {}):
            values[column] = captioning["named"][mode][name]
    return values


def rows_of(runs: dict[tuple[str, int], tuple[Path, dict]]) -> list[dict]:
    """One row per run, for the seeds that are finished in every arm."""
    summaries = finished(runs)
    unfinished = {seed for _, seed in runs.keys() - summaries.keys()}
    return [
        {"arm": arm, "seed": seed, "seconds": summary["seconds"], "steps": summary["steps"]}
        | {"values": values_of(summary["metrics"])}
        for (arm, seed), summary in summaries.items()
        if seed not in unfinished
    ]


def table(rows: list[dict]) -> str:
    """One column per arm and one line per value: mean and interval over the seeds, and of the difference per seed."""
    values = {(row["arm"], row["seed"]): row["values"] for row in rows}
    seeds = sorted({seed for _, seed in values})
    all_terms = (UNIFIED, MORE)
    head = [*ARMS, *(f"{arm}, minus the best of one purpose" for arm in all_terms)]
    lines = [f"| | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for column in (*EMBEDDINGS, *CAPTIONS, *NAMED):
        of_arm = {arm: [values[arm, seed][column] for seed in seeds if column in values[arm, seed]] for arm in ARMS}
        others = {arm: cells for arm, cells in of_arm.items() if cells and arm not in all_terms}
        if not others:
            continue
        best = max(others.values(), key=statistics.mean)
        cells = [mean_and_interval(cells) if cells else "" for cells in of_arm.values()]
        for arm in all_terms:
            gains = [ours - other for ours, other in zip(of_arm[arm], best, strict=True)]
            cells.append(mean_and_interval(gains, signed=True))
        lines.append(f"| {column} | {' | '.join(cells)} |")
    steps = {row["arm"]: row["steps"] for row in rows}
    lines.append("| steps | " + " | ".join(str(steps[arm]) for arm in ARMS) + " | | |")
    return "\n".join(lines)


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the table, its interpretation, and the environment."""
    scenes = record["scenes"]
    labeled = round(CAPTIONED * scenes["train"])
    parts = [
        "# One model by all methods, or a model for each",
        (f"Synthetic soundscapes: {scenes['train']} clips for training and {scenes['test']} held out. {labeled} clips "
        f"keep their captions and the other {scenes['train'] - labeled} are unlabeled audio. All arms have the same "
        "architecture, start from scratch, and train with the same data order; an arm differs from unified training "
        "in the terms whose weight is 0: aligned has the global and the aligned loss, semi-supervised the global loss "
        "and those with unlabeled audio, captioning the cross-entropy of captions with audio difference. Each run "
        f"has {record['budget']:g} s of CPU time for its training steps on one thread, so a cheaper method takes more "
        f'steps; "{MORE}" takes as many as captioning. Checkpoints are selected on {scenes["val"]} clips. Mean over '
        f"{record['seeds']} seeds, in percent, ± half the width of its 95 % interval (Student's t); the last columns "
        "are paired differences. `alignment`: phrases whose best frame is inside their event."),
        record["table"],
        f"Not run yet: {', '.join(record['unfinished'])}." if record["unfinished"] else "",
        record["interpretation"],
        f"Run: {listed(RUN)}; scenes: {listed(SCENES)}.",
        "CPU time of a step: "
        + ", ".join(f"{arm} {seconds:.2f} s" for arm, seconds in record["seconds per step"].items()) + ".",
    ]  # fmt: skip
    return joined_page(parts, f"python benchmarks/unified.py --budget {record['budget']:g}", record)


def main() -> None:
    parser = comparison_parser(__doc__, "unified", steps=0)
    parser.add_argument("--budget", type=float, default=1200.0, help="CPU time of the training steps of a run, in s")
    options = parser.parse_args()
    folder = options.runs
    if not options.report:
        run_atk("soundscapes", folder / "data", *flags(SCENES))
        split(folder, CAPTIONED, LINKS)
    runs = plan(folder, options.seeds, steps_of(folder, options.budget))
    if not options.report:
        train_all("unified", folder / "labeled", dict(runs.values()), options.jobs)
    rows = rows_of(runs)
    if not rows:
        raise SystemExit(f"no seed in {folder} is finished in every arm")
    done = finished(runs)
    record = {
        "scenes": yaml.safe_load((folder / "data" / "soundscapes.yaml").read_text()),
        "budget": options.budget,
        "seconds per step": json.loads((folder / "seconds_per_step.json").read_text()),
        "seeds": len({row["seed"] for row in rows}),
        "unfinished": [out.name for key, (out, _) in runs.items() if key not in done],
        "table": table(rows),
        "rows": rows,
    }
    stem = options.results / "unified"
    write_results(stem, record, render_page, options.interpretation, options.jobs, options.report)
    print(record["table"])


if __name__ == "__main__":
    main()
