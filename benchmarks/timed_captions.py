"""Do timed captions help to find moments? Compares losses on soundscapes with the same data, steps, and seeds.

python benchmarks/timed_captions.py                    # continues where it was interrupted
python benchmarks/timed_captions.py --events FOLDER    # on scenes composed from recordings
"""

import json
import re
import subprocess
import sys
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
    mean_and_spread,
    run_atk,
    train_all,
    write_results,
)

LOW = {"loss.aligned_weight": 1.0, "model.audio.frame_layer": 1, "model.text.token_layer": 0}
TIMED = LOW | {"loss.timed_weight": 1.0}
BASELINE = "aligned, low layers"
ARMS = {
    "global": {"loss.aligned_weight": 0.0, **LAST_LAYERS},
    "aligned, last layers": {"loss.aligned_weight": 1.0, **LAST_LAYERS},
    BASELINE: LOW,
    "timed": TIMED,
    "frames": LOW | {"loss.frame_weight": 1.0},
}
SCENES = {
    "preset": "easy", "classes": 16, "events": [2, 3], "seconds": [3.5, 4.0],
    "train": 1200, "val": 60, "test": 200, "seed": 1,
}  # fmt: skip
RECORDED_SCENES = SCENES | {"classes": 24, "snr-db": [20.0, 30.0], "pitch": "false", "loudness": "false"}
RUN = {
    "steps": 300, "batch_size": 24, "eval_every": 0, "save_every": 100, "workers": 0, "clip_seconds": 4.0,
    "optim.lr": 1e-3, "loss.temperature": 0.07, "loss.learnable": "true", "model.dim": 64,
    "model.audio.mel_bins": 32, "model.audio.channels": "[8,16,32,32]", "model.audio.width": 64,
    "model.audio.layers": 3, "model.audio.dropout": 0,
    "model.text.width": 64, "model.text.layers": 2, "model.text.heads": 2, "model.text.dropout": 0,
}  # fmt: skip
COLUMNS = ("alignment", "R1@0.5", "R1@0.7", "mAP", "F1", "t2a R@1", "t2a mAP@10")


def plan(folder: Path, seeds: int, steps: int) -> dict[tuple[str, int], tuple[Path, dict]]:
    """Run folder and settings of every seed and arm, seed by seed."""
    runs: dict[tuple[str, int], tuple[Path, dict]] = {}
    for seed in range(seeds):
        for arm, settings in ARMS.items():
            name = f"{re.sub('[^a-z]+', '-', arm)}-{seed}"
            runs[arm, seed] = folder / name, RUN | {"steps": steps, "seed": seed, **settings}
    return runs


def atk_json(*arguments: object) -> dict:
    """The JSON that an `atk` command prints."""
    command = [str(Path(sys.executable).with_name("atk")), *map(str, arguments)]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.JSONDecoder().raw_decode(printed)[0]


def evaluate(run: Path, data: Path) -> dict[str, float]:
    """Metrics of a run on the test scenes, with moments calibrated on the validation scenes; kept in the run."""
    file = run / "timed_captions.json"
    if not file.is_file():
        reading = ("--data", data, "--clip_seconds", RUN["clip_seconds"])
        chosen = atk_json("evaluate", run, *reading, "--calibrate")
        result = atk_json("evaluate", run, *reading, "--split", "test", "--protocol", "moments")
        moments = result["protocols"]["moments"]["metrics"]
        values = {name: moments[name] for name in ("R1@0.5", "R1@0.7", "mAP")}
        values |= {f"t2a {name}": result["text_to_audio"][name] for name in ("R@1", "mAP@10")}
        values |= {"alignment": result["alignment"]["right"], "chance": result["alignment"]["chance"]}
        file.write_text(json.dumps(values | {"F1": chosen["F1"]}))
    return json.loads(file.read_text())


def rows_of(runs: dict[tuple[str, int], tuple[Path, dict]], data: Path) -> list[dict]:
    """One row per run, for the seeds that are finished in every arm."""
    summaries = finished(runs)
    unfinished = {seed for _, seed in runs.keys() - summaries.keys()}
    return [
        {"arm": arm, "seed": seed, "seconds": summary["seconds"], **evaluate(runs[arm, seed][0], data)}
        for (arm, seed), summary in summaries.items()
        if seed not in unfinished
    ]


def table(rows: list[dict]) -> str:
    """Mean (standard deviation) over the seeds, one arm per line; then the differences from the baseline."""
    head = [f"| arm | {' | '.join((*COLUMNS, 'seconds'))} |", "|---|" + "---|" * (len(COLUMNS) + 1)]
    lines = [*head]
    for arm in ARMS:
        mine = [row for row in rows if row["arm"] == arm]
        cells = [mean_and_spread(row[column] for row in mine) for column in (*COLUMNS, "seconds")]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", f"| minus {BASELINE} | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
    for arm in ARMS:
        if arm != BASELINE:
            lines.append(f"| {arm} | {' | '.join(difference(rows, arm, BASELINE, column) for column in COLUMNS)} |")
    return "\n".join(lines)


def render_page(record: dict) -> str:
    """The Markdown page: what was compared, the tables, their interpretation, and the environment."""
    scenes, run, rows = record["scenes"], record["run"], record["rows"]
    recorded = bool(scenes["recordings"])
    parts = [
        f"# Learning from timed captions{' on recordings' if recorded else ''}",
        (
            f"{'Scenes composed from recordings' if recorded else 'Synthetic soundscapes'} of 3.5 to 4 s with two or "
            f"three events: {scenes['train']} for training, {scenes['test']} held out, and {scenes['val']} to "
            "calibrate the threshold and the smoothing of moments. All arms use the same model, steps, and batches, "
            "and are trained from scratch. Mean and standard deviation over "
            f"{len(rows) // len(ARMS)} seeds, in percent; then the mean difference from the same seed of "
            f'"{BASELINE}", with its 95 % interval.'
        ),
        table(rows),
        (
            "`alignment`: phrases whose best frame is inside their event (chance: "
            f"{record['alignment_chance']:.0f}). `R1` and `mAP`: moments of the phrases. `F1`: of spans on the "
            "validation scenes, with the threshold chosen there; phrases that do not sound count. `t2a`: retrieval by "
            f"the global vectors. All arms but the first two take frames and tokens from low layers, and those after "
            f'"{BASELINE}" add a loss of timed captions to it.'
        ),
        record["interpretation"],
        f"Run: {listed(run)}.",
    ]
    return joined_page(parts, f"python benchmarks/timed_captions.py{' --events FOLDER' if recorded else ''}", record)


def main() -> None:
    parser = comparison_parser(__doc__, "timed_captions", RUN["steps"])
    parser.add_argument("--events", type=Path, help="compose the scenes from the recordings in this folder")
    options = parser.parse_args()
    data = options.runs / "data"
    runs = plan(options.runs, options.seeds, options.steps)
    if not options.report:
        scenes = RECORDED_SCENES | {"recordings": options.events} if options.events else SCENES
        run_atk("soundscapes", data, *flags(scenes))
        train_all("aligned", data, dict(runs.values()), options.jobs)
    rows = rows_of(runs, data)
    if not rows:
        raise SystemExit(f"no seed in {options.runs} is finished in every arm")
    record = {
        "scenes": yaml.safe_load((data / "soundscapes.yaml").read_text()),
        "run": RUN | {"steps": options.steps},
        "alignment_chance": rows[0]["chance"],
        "rows": rows,
    }
    stem = options.results / ("timed_captions_recorded" if options.events else "timed_captions")
    write_results(stem, record, render_page, options.interpretation, options.jobs, options.report)
    print(table(rows))


if __name__ == "__main__":
    main()
