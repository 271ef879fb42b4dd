"""Compare four captioning objectives, and the mask under five reference conditions, with equal data, steps, and seeds.

python benchmarks/difference_captioning.py            # continues where it was interrupted
"""

import os
import sysconfig
from pathlib import Path

import yaml

from atk.data import CONDITIONS
from experiments import (
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

INSTALLED = sysconfig.get_path("purelib") + os.sep  # prefix of paths that is left out of the page
OBJECTIVES = ("plain", "pairmix", "subtraction", "mask")
SCENES = {
    "preset": "medium", "classes": 16, "events": [1, 2], "overlap": 0.5, "snr_db": [15, 25], "pitch": "false",
    "seconds": [3.0, 3.0], "captions_per_clip": 5, "rephrase": "true",
    "train": 3000, "test": 250, "pool": 20, "seed": 1,
}  # fmt: skip
RUN = {
    "batch_size": 16, "precision": "fp32", "eval_every": 0, "save_every": 250, "optim.lr": 2e-3, "clip_seconds": 3.0,
    "mix.rate": 0.5, "mix.snr_db": [0, 6],
}  # fmt: skip
MODEL = {
    "model.audio.channels": [8, 16, 32, 64, 128, 128], "model.audio.window": 1024, "model.audio.hop": 320,
    "model.audio.dropout": 0, "model.decoder.dropout": 0,
}  # fmt: skip
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "SPIDEr")


def first_runs(folder: Path, seeds: int, steps: int) -> dict[int, tuple[Path, dict]]:
    """For each seed, the folder and options of the plain captioner that all objectives start from."""
    options = RUN | MODEL | {"objective": "plain", "steps": steps, "mix.references": folder / "data" / "pool"}
    return {seed: (folder / f"first-{seed}", options | {"seed": seed}) for seed in range(seeds)}


def plan(folder: Path, seeds: int, steps: int) -> dict[tuple[str, str, int], tuple[Path, dict]]:
    """Folder and options of each run by (objective, condition, seed), the most informative runs first."""
    objectives = [(name, CONDITIONS[0], seed) for name in OBJECTIVES for seed in range(seeds)]
    conditions = [("mask", name, seed) for seed in range(seeds) for name in CONDITIONS[1:]]
    runs: dict[tuple[str, str, int], tuple[Path, dict]] = {}
    for objective, condition, seed in objectives + conditions:
        options = {"objective": objective, "mix.condition": condition, "seed": seed, "steps": steps}
        options |= {"mix.references": folder / "data" / "pool", "init": folder / f"first-{seed}"}
        name = f"{objective}-{condition.replace('/', '-')}-{seed}"
        runs[objective, condition, seed] = folder / name, RUN | options
    return runs


def rows_of(runs: dict[tuple[str, str, int], tuple[Path, dict]]) -> list[dict]:
    """One row per finished run: its scores on clips alone and on mixtures, and the events its captions name."""
    rows = []
    for (objective, condition, seed), summary in finished(runs).items():
        metrics = summary["metrics"]
        mixture = "minus_added" if "minus_added" in metrics else "mix"
        row = {"objective": objective, "condition": condition, "seed": seed, "seconds": summary["seconds"]}
        missing = {name: reason.replace(INSTALLED, "") for name, reason in metrics["missing"].items()}
        row |= {"input": metrics["input"], "mixture": metrics[mixture], "missing": missing}
        row |= {f"named {name}": shares for name, shares in metrics["named"].items()}
        rows.append(row | {"named mixture": metrics["named"][mixture]})
    return rows


def table(rows: list[dict], arms: dict[str, tuple[str, str]], lines: dict[str, tuple[str, str, int]]) -> str:
    """One column per arm (objective, condition), one line per value (group, name, digits)."""
    text = ["| | " + " | ".join(arms) + " |", "|---|" + "---:|" * len(arms)]
    for label, (group, name, digits) in lines.items():
        cells = []
        for arm in arms.values():
            rows_of_arm = [row for row in rows if (row["objective"], row["condition"]) == arm]
            values = [row[group][name] for row in rows_of_arm if name in row.get(group, {})]
            cells.append(mean_and_spread(values, digits) if values else "")
        if any(cells):
            text.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def tables(rows: list[dict]) -> dict[str, str]:
    """The three tables: objectives on clips alone, objectives on mixtures, and the mask by reference condition."""
    objectives = {name: (name, CONDITIONS[0]) for name in OBJECTIVES}
    conditions = {name: ("mask", name) for name in CONDITIONS}
    scores = {name: ("mixture", name, 3) for name in METRICS}
    names = {
        "names the clip's events, %": ("named mixture", "target", 1),
        "names the added event, %": ("named mixture", "added", 1),
        "names an event of the clip and not the added one, %": ("named mixture", "target_alone", 1),
        "Diff(mix, clip) names the added event, %": ("named minus_input", "added", 1),
    }
    alone = {name: ("input", name, 3) for name in METRICS} | {
        "names the clip's events, %": ("named input", "target", 1)
    }
    main_scores = {f"{name}, {label}": (group, name, 3) for name in ("METEOR", "CIDEr", "SPIDEr")
           for label, group in (("clip alone", "input"), ("mixture", "mixture"))}  # fmt: skip
    return {
        "Clips alone, no reference": table(rows, objectives, alone),
        "Mixtures: plain and PairMix caption the mix, subtraction and mask caption `Diff(mix, reference)`": table(
            rows, objectives, scores | names
        ),
        "The mask trained and tested under the five reference conditions (source/time)": table(
            rows, conditions, main_scores | names
        ),
    }


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the tables, their interpretation, and the environment."""
    scenes, run, rows = record["scenes"], record["run"], record["rows"]
    seeds = len({row["seed"] for row in rows})
    missing = "; ".join(f"{name}: {reason}" for name, reason in rows[0]["missing"].items())
    parts = [
        "# Captioning with audio difference learning",
        (
            f"Synthetic soundscapes: {scenes['train']} for training and {scenes['test']} held out, with "
            f"{scenes['captions_per_clip']} captions each. Single events of the same classes are mixed in; four of "
            "their five folds are used for training and the fifth for testing, where an event is only added to clips "
            "without its class. All runs use the same model and number of steps and start from the same plain "
            f"captioner of {run['first steps']} steps. Mean and standard deviation over {seeds} seeds. In held-out "
            f"mixtures the added event is {run['mix.snr_db'][0]} to {run['mix.snr_db'][1]} dB below the clip."
        ),
        *(f"## {title}\n\n{text}" for title, text in record["tables"].items()),
        f"Not computed: {missing}." if missing else "",
        f"Not run yet: {', '.join(record['unfinished'])}." if record["unfinished"] else "",
        record["interpretation"],
        f"Run: {listed(run)}; scenes: {listed(SCENES)}.",
        training_time(record),
    ]
    return joined_page(parts, "python benchmarks/difference_captioning.py", record)


def main() -> None:
    parser = comparison_parser(__doc__, "difference", steps=700)
    parser.add_argument(
        "--first-steps", type=int, default=1800, help="steps of the plain captioner that all runs start from"
    )
    options = parser.parse_args()
    data = options.runs / "data"
    runs = plan(options.runs, options.seeds, options.steps)
    if not options.report:
        run_atk("soundscapes", data, *flags(SCENES))
        first = first_runs(options.runs, options.seeds, options.first_steps)
        for stage in (first, runs):
            train_all("difference", data, dict(stage.values()), options.jobs)
    rows = rows_of(runs)
    done = finished(runs)
    if not rows:
        raise SystemExit(f"no run in {options.runs} is finished")
    record = {
        "scenes": yaml.safe_load((options.runs / "data" / "soundscapes.yaml").read_text()),
        "run": RUN | MODEL | {"first steps": options.first_steps, "steps": options.steps},
        "unfinished": [out.name for key, (out, _) in runs.items() if key not in done],
        "tables": tables(rows),
        "rows": rows,
    }
    stem = options.results / "difference_captioning"
    write_results(stem, record, render_page, options.interpretation, options.jobs, options.report)
    print("\n\n".join(record["tables"].values()))


if __name__ == "__main__":
    main()
