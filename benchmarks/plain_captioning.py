"""When does difference learning help to caption clips alone? Varies clips, steps, model, and share of mixtures.

python benchmarks/plain_captioning.py            # continues where it was interrupted
"""

import json
from itertools import groupby
from pathlib import Path

from experiments import (
    captioned_clips,
    comparison_parser,
    flags,
    gains_table,
    joined_page,
    listed,
    means_table,
    run_atk,
    run_name,
    study_record,
    train_all,
    training_time,
    write_results,
)

SCENES = {
    "preset": "medium", "classes": 16, "snr_db": [15, 25], "pitch": "false", "seconds": [2.0, 2.0],
    "sample_rate": 8000, "captions_per_clip": 5, "rephrase": "true", "train": 3000,
}  # fmt: skip
FIRST_SCENES = SCENES | {"events": [1, 1], "test": 16, "seed": 2}
SCENES |= {"events": [1, 2], "overlap": 0.5, "val": 100, "test": 200, "pool": 20, "seed": 1}
LINKS = ("val.csv", "test.csv", "audio", "events.csv", "tags.csv", "soundscapes.yaml")
RUN = {
    "batch_size": 16, "precision": "fp32", "eval_every": 50, "save_every": 1000, "clip_seconds": 2.0, "workers": 0,
    "device": "cpu", "optim.lr": 2e-3, "mix.snr_db": [0, 6], "beams": 2,
}  # fmt: skip
MODEL = {
    "model.audio.sample_rate": 8000, "model.audio.fmax": 4000, "model.audio.window": 256, "model.audio.hop": 128,
    "model.audio.mel_bins": 32, "model.audio.dropout": 0, "model.decoder.dropout": 0,
}  # fmt: skip
MODELS = {
    "small": {
        "model.audio.channels": [8, 16, 32, 64, 64, 64], "model.decoder.width": 64, "model.decoder.layers": 1,
    },
    "large": {
        "model.audio.channels": [12, 24, 48, 96, 96, 96], "model.decoder.width": 96, "model.decoder.layers": 2,
    },
}  # fmt: skip
FEW, SHORT, LONG = 300, 400, 1200  # clips; steps
BASE, MANY = f"{FEW} clips, {SHORT} steps", f"{SCENES['train']:,} clips, {SHORT} steps"
LONGER, LARGER = f"{FEW} clips, {LONG:,} steps", f"{BASE}, larger model"
CONDITIONS = {  # clips, steps, and model
    BASE: (FEW, SHORT, "small"),
    MANY: (SCENES["train"], SHORT, "small"),
    LONGER: (FEW, LONG, "small"),
    LARGER: (FEW, SHORT, "large"),
}
PLAIN, MASK = {"objective": "plain"}, {"objective": "mask", "mix.rate": 0.5}
ARMS = {  # condition and options, the most informative first
    f"{condition}: {name}": (condition, options)
    for condition in CONDITIONS
    for name, options in (("plain", PLAIN), ("mask", MASK))
} | {
    f"{BASE}: mask, a quarter of the clips mixed": (BASE, MASK | {"mix.rate": 0.25}),
    f"{BASE}: mask, all clips mixed": (BASE, MASK | {"mix.rate": 1.0}),
    f"{BASE}: subtraction": (BASE, MASK | {"objective": "subtraction"}),
    f"{BASE}: pairmix": (BASE, MASK | {"objective": "pairmix"}),
}
GAINS = {arm: (arm, f"{condition}: plain") for arm, (condition, options) in ARMS.items() if options != PLAIN}
COLUMNS = {  # group and name in the captioning metrics, and a factor
    "CIDEr, clip alone": ("input", "CIDEr", 100),
    "ROUGE-L, clip alone": ("input", "ROUGE-L", 100),
    "CIDEr, mixture": ("mixture", "CIDEr", 100),
}
NAMED = {
    "events named, clip alone": ("input", "target"),
    "events named, mixture": ("mixture", "target"),
    "the clip's and not the added one, mixture": ("mixture", "target_alone"),
}
VALIDATION, BEST_STEP = "log-likelihood x 100, clip alone", "best step"


def first_runs(folder: Path, seeds: int, steps: int) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Folder and options of the plain captioners of single events that the runs of each seed start from."""
    options = RUN | MODEL | PLAIN | {"steps": steps, "eval_every": 0}
    return {
        (model, seed): (folder / f"first-{model}-{seed}", options | sizes | {"seed": seed})
        for seed in range(seeds)
        for model, sizes in MODELS.items()
    }


def plan(folder: Path, seeds: int) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and options of every arm and seed, seed by seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, (condition, options) in ARMS.items():
            _, steps, model = CONDITIONS[condition]
            common = {"steps": steps, "seed": seed, "init": str(folder / f"first-{model}-{seed}")}
            references = {"mix.references": str(folder / "data" / "pool")}
            runs[arm, seed] = folder / run_name(arm, seed), RUN | common | references | options
    return runs


def values_of(out: Path, metrics: dict) -> dict[str, float]:
    """The values of the tables: of the captions of test clips, and of the best checkpoint on the validation clips."""
    mixture = "minus_added" if "minus_added" in metrics else "mix"  # without a Diff block, the mixture is captioned
    modes = {"input": "input", "mixture": mixture}
    values = {column: factor * metrics[modes[group]][name] for column, (group, name, factor) in COLUMNS.items()}
    values |= {column: metrics["named"][modes[group]][name] for column, (group, name) in NAMED.items()}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if "val/log_likelihood" in line), key=lambda line: line["val/log_likelihood"])
    return values | {VALIDATION: 100 * best["val/log_likelihood"], BEST_STEP: best["step"]}


def tables(rows: list[dict]) -> dict[str, str]:
    """The gains over plain captioning in the same condition, and the values of all arms."""
    columns = (*COLUMNS, *NAMED, VALIDATION)
    return {
        "Minus plain captioning with the same clips, steps, and model": gains_table(rows, GAINS, columns),
        "All arms": means_table(rows, ARMS, (*columns, BEST_STEP)),
    }


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the tables, their interpretation, and the environment."""
    scenes = record["scenes"]
    parts = [
        "# When difference learning helps to caption clips alone",
        (f"Synthetic soundscapes of one or two events with {scenes['captions_per_clip']} captions each, {FEW} or "
        f"{scenes['train']:,} for training, {scenes['val']} for validation, and {scenes['test']} held out. All runs of "
        f"a seed and a size start from the same plain captioner, trained for {record['first steps']:,} steps on "
        f"{FIRST_SCENES['train']:,} other scenes with a single event, and the checkpoint with the highest "
        "log-likelihood of captions of clips alone is taken. `mask` and `subtraction` learn from mixtures with a "
        "reference in half of the clips unless stated otherwise, `pairmix` from mixtures of two clips and both "
        "captions. For mixtures, plain and pairmix caption what they hear, and the others `Diff(mix, added)`. Mean "
        "over the seeds, in percent, ± half the width of its 95 % interval (Student's t)."),
        *(f"## {title}\n\n{text}" for title, text in record["tables"].items()),
        f"Not run yet: {', '.join(record['unfinished'])}." if record["unfinished"] else "",
        record["interpretation"],
        f"Run: {listed(RUN | MODEL)}.",
        *(f"The {name} model: {listed(sizes)}." for name, sizes in MODELS.items()),
        f"Scenes: {listed(SCENES)}.",
        training_time(record),
    ]  # fmt: skip
    return joined_page(parts, "python benchmarks/plain_captioning.py", record)


def train(folder: Path, runs: dict, first: dict, jobs: int) -> None:
    """Write the scenes and train what is missing, seed by seed."""
    run_atk("soundscapes", folder / "data", *flags(SCENES))
    run_atk("soundscapes", folder / "first-data", *flags(FIRST_SCENES))
    captioned_clips(folder / "data", folder / "few", FEW, LINKS)
    for (seed, data), group in groupby(runs, key=lambda key: (key[1], data_of(folder, key[0]))):
        keys = list(group)
        models = dict.fromkeys(CONDITIONS[ARMS[arm][0]][2] for arm, _ in keys)
        train_all("difference", folder / "first-data", dict(first[model, seed] for model in models), jobs)
        train_all("difference", data, dict(runs[key] for key in keys), jobs)


def data_of(folder: Path, arm: str) -> Path:
    """The folder with the training clips of an arm."""
    clips, _, _ = CONDITIONS[ARMS[arm][0]]
    return folder / ("few" if clips == FEW else "data")


def main() -> None:
    parser = comparison_parser(__doc__, "plain_captioning", steps=None)
    parser.add_argument("--first-steps", type=int, default=1200, help="steps of the captioners to start from")
    options = parser.parse_args()
    folder = options.runs
    runs = plan(folder, options.seeds)
    if not options.report:
        train(folder, runs, first_runs(folder, options.seeds, options.first_steps), options.jobs)
    record = study_record(folder, runs, values_of, tables) | {"first steps": options.first_steps}
    write_results(
        options.results / "plain_captioning", record, render_page, options.interpretation, options.jobs, options.report
    )
    print("\n\n".join(record["tables"].values()))


if __name__ == "__main__":
    main()
