"""What does unlabeled audio gain, and what do L_unlabeled and noise? Varies captions, unlabeled clips, and steps.

python benchmarks/noise_unlabeled.py            # continues where it was interrupted
"""

from itertools import groupby
from pathlib import Path

from atk.eval.retrieval import evaluate_retrieval
from experiments import (
    audio_of_clips,
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
from semisupervised_retrieval import MLP, PRETRAINING_RUN, PRETRAINING_SCENES, RUN, SCENES, SUPERVISED, start_of
from semisupervised_retrieval import values_of as retrieval_of

_HERE = {"workers": 0, "device": "cpu"}
FIRST, SETTINGS = PRETRAINING_RUN | _HERE, RUN | _HERE
MIX = MLP | {"loss.unlabeled_weight": 0.0, "mapper.noise": 0.0}
FULL = MLP | {"mapper.noise": 0.0}
FEW, MANY = 300, 1000  # captioned clips; unlabeled ones come after the first MANY
LITTLE, MUCH = 300, 2000  # unlabeled clips
SHORT, LONG = 120, 240  # steps
BASE = "300 captions"
CONDITIONS = {  # captioned clips, unlabeled clips, and steps
    BASE: (FEW, MUCH, SHORT),
    "1,000 captions": (MANY, MUCH, SHORT),
    "300 captions, 240 steps": (FEW, MUCH, LONG),
    "300 captions, 300 unlabeled": (FEW, LITTLE, SHORT),
}
_SUPERVISED, _MIX, _FULL = "captions alone", "L_mix", "L_mix + L_unlabeled"
ARMS = {  # condition and options, the most informative first
    f"{condition}: {name}": (condition, options)
    for condition, (_, unlabeled, _) in CONDITIONS.items()
    for name, options in ((_SUPERVISED, SUPERVISED), (_MIX, MIX), (_FULL, FULL))
    if unlabeled == MUCH or options != SUPERVISED  # that one has no unlabeled audio
} | {
    f"{BASE}: {_FULL}, noise 1": (BASE, FULL | {"mapper.noise": 1.0}),
    f"{BASE}: {_MIX}, noise 1": (BASE, MIX | {"mapper.noise": 1.0}),
    f"{BASE}: {_FULL}, noise 0.3": (BASE, FULL | {"mapper.noise": 0.3}),
}
GAINS = {
    f"L_mix, {condition}": (
        f"{condition}: {_MIX}",
        f"{condition if unlabeled == MUCH else BASE}: {_SUPERVISED}",
    )
    for condition, (_, unlabeled, _) in CONDITIONS.items()
} | {
    f"L_unlabeled, {condition}": (f"{condition}: {_FULL}", f"{condition}: {_MIX}") for condition in CONDITIONS
} | {
    f"noise 1, {BASE}": (f"{BASE}: {_FULL}, noise 1", f"{BASE}: {_FULL}"),
    f"noise 1 without L_unlabeled, {BASE}": (f"{BASE}: {_MIX}, noise 1", f"{BASE}: {_MIX}"),
    f"noise 0.3, {BASE}": (f"{BASE}: {_FULL}, noise 0.3", f"{BASE}: {_FULL}"),
}  # fmt: skip
COLUMNS = [f"{direction} {name}" for direction in ("t2a", "a2t") for name in ("R@1", "R@10", "mAP@10")]


def plan(folder: Path, seeds: int) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and options of every arm and seed, seed by seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, (condition, options) in ARMS.items():
            _, unlabeled, steps = CONDITIONS[condition]
            common: dict[str, object] = {"steps": steps, "seed": seed, "init": str(folder / "first")}
            if options != SUPERVISED:
                common["unlabeled"] = [str(folder / f"unlabeled-{unlabeled}")]
            runs[arm, seed] = folder / run_name(arm, seed), SETTINGS | common | options
    return runs


def values_of(out: Path, metrics: dict) -> dict[str, float]:
    """The values of the tables in the metrics of a run."""
    long = {column.replace("t2a", "text_to_audio").replace("a2t", "audio_to_text"): column for column in COLUMNS}
    values = retrieval_of(metrics)
    return {column: values[name] for name, column in long.items()}


def start(folder: Path) -> dict[str, float]:
    """The values of the tables for the model that all runs start from, and the scale of what noise is added to."""
    model, test = start_of(folder)
    scale = {"standard deviation": float(test.pooled.std(dim=0).mean())}
    return values_of(folder / "first", evaluate_retrieval(model, test)) | scale


def tables(rows: list[dict]) -> dict[str, str]:
    """The gains by a term of the loss or by noise, and the values of all arms."""
    return {"Gains": gains_table(rows, GAINS, COLUMNS), "All arms": means_table(rows, ARMS, COLUMNS)}


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the tables, their interpretation, and the environment."""
    scenes = record["scenes"]
    parts = [
        "# What unlabeled audio, its loss, and noise gain",
        (f"Synthetic soundscapes: {FEW} or {MANY:,} clips with captions, {LITTLE} or {MUCH:,} without, and "
        f"{scenes['test']} held out. Unless stated otherwise, there are {MUCH:,} unlabeled clips and {SHORT} steps. "
        "All runs start from the same model, trained on other, easier scenes, and the checkpoint is selected by mAP@10 "
        f"on {scenes['val']} captioned scenes. L_mix (5.10) and L_unlabeled (5.15) use the MLP mapper; noise (5.13) is "
        "added to its input, here the global vector before normalization. Mean over the seeds, in percent, ± half the "
        "width of its 95 % interval (Student's t); retrieval uses the cosine of global vectors."),
        "Before fine-tuning: " + ", ".join(f"{column} {record['start'][column]:.1f}" for column in COLUMNS) + ". The "
        "global vectors of that model vary from clip to clip with a standard deviation of "
        f"{record['start']['standard deviation']:.2f} per channel.",
        *(f"## {title}\n\n{text}" for title, text in record["tables"].items()),
        f"Not run yet: {', '.join(record['unfinished'])}." if record["unfinished"] else "",
        record["interpretation"],
        f"Pretraining: {listed(PRETRAINING_SCENES | FIRST)}.",
        f"Run: {listed(SETTINGS)}; scenes: {listed(SCENES)}.",
        training_time(record),
    ]  # fmt: skip
    return joined_page(parts, "python benchmarks/noise_unlabeled.py", record)


def train(folder: Path, runs: dict, jobs: int) -> None:
    """Write the scenes and train what is missing, seed by seed."""
    run_atk("soundscapes", folder / "data", *flags(SCENES))
    run_atk("soundscapes", folder / "first-data", *flags(PRETRAINING_SCENES))
    train_all("aligned", folder / "first-data", {folder / "first": FIRST})
    for count in (FEW, MANY):
        captioned_clips(folder / "data", folder / f"captioned-{count}", count, ("val.csv", "test.csv", "audio"))
    for count in (LITTLE, MUCH):
        audio_of_clips(folder / "data", folder / f"unlabeled-{count}", slice(MANY, MANY + count))
    for (_, captions), group in groupby(runs, key=lambda key: (key[1], CONDITIONS[ARMS[key[0]][0]][0])):
        train_all("semisupervised", folder / f"captioned-{captions}", dict(runs[key] for key in group), jobs)


def main() -> None:
    options = comparison_parser(__doc__, "noise_unlabeled", steps=None).parse_args()
    folder = options.runs
    runs = plan(folder, options.seeds)
    if not options.report:
        train(folder, runs, options.jobs)
    record = study_record(folder, runs, values_of, tables) | {"start": start(folder)}
    write_results(
        options.results / "noise_unlabeled", record, render_page, options.interpretation, options.jobs, options.report
    )
    print("\n\n".join(record["tables"].values()))


if __name__ == "__main__":
    main()
