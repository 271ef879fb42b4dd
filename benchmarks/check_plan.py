"""`atk plan` beside real training steps: memory and time, predicted and measured, each case in a process of its own."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from atk.bench.memory import peak_bytes
from atk.plan import Rates, Resources, plan
from atk.plan.step import STATE_BYTES
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.semisupervised import SemiSupervisedConfig, SemiSupervisedTask
from atk.train.trainer import Trainer
from runs import atk, flags, write_results

SCENES = {"preset": "medium", "seconds": [5.0, 5.0], "train": 512, "test": 8, "seed": 0}
METHODS = {"aligned": (AlignedConfig, AlignedTask), "semisupervised": (SemiSupervisedConfig, SemiSupervisedTask)}
CASES = [
    {"batch_size": 64},
    {"batch_size": 256},
    {"batch_size": 256, "micro_batch": 32},
    {"batch_size": 512, "micro_batch": 64},
    {"batch_size": 256, "activation_checkpointing": True},
    {"batch_size": 256, "micro_batch": 32, "precision": "bf16"},
    {"method": "semisupervised", "batch_size": 128, "micro_batch": 32},
]
HEADS = "| case | MiB predicted | measured | factor | ms predicted | measured | factor |\n|---|" + 6 * "---:|"


def make_config(case: dict, data: str):
    """The configuration of a case."""
    options = {"device": "cpu", "precision": "fp32", "clip_seconds": SCENES["seconds"][1], "workers": 0} | case
    make = METHODS[options.pop("method", "aligned")][0]
    unlabeled = {"unlabeled": [data]} if make is SemiSupervisedConfig else {}
    return make(data=data, out=f"{data}-run", **options | unlabeled)


def measure(case: dict, data: str, steps: int) -> dict:
    """Bytes that steps take beyond what a step of two clips leaves behind, the weights' own added; seconds of each."""
    config = make_config(case, data)
    Path(config.out).mkdir(exist_ok=True)
    task = METHODS[case.get("method", "aligned")][1](config, torch.device("cpu"))
    trainer = Trainer(task, config, torch.device("cpu"))
    task.model.train()
    seconds, found = [], {}

    def train() -> None:
        batch = next(task.batches(0))
        captions = getattr(batch, "labeled", batch).captions
        found["caption_tokens"] = task.model.tokenize(captions)["input_ids"].shape[1] - 2
        for _ in range(steps + 1):
            start = time.perf_counter()
            trainer.update(batch)
            seconds.append(time.perf_counter() - start)
            trainer.step += 1

    trainer.update(next(task.batches(0)).split(2)[0])  # libraries make their buffers, the optimiser its moments
    weights = sum(STATE_BYTES * parameter.numel() for parameter in trainer.parameters)
    peak = peak_bytes(train, (), torch.device("cpu")) + weights
    return found | {"bytes": peak, "seconds": seconds[1:]}


def predict(case: dict, data: str, caption_tokens: int) -> dict:
    """The plan of a case, with the rates of this CPU as they are now."""
    config = make_config(case, data)
    result = plan(config, Resources(Rates.of("cpu", config.precision == "bf16"), cpu=True), caption_tokens)
    return {"bytes": result.peak_bytes, "seconds": result.seconds, "plan": result.to_dict()}


def factor(predicted: float, measured: float) -> float:
    """How far they are apart, at least 1."""
    return max(predicted / measured, measured / predicted)


def row(case: dict, predicted: dict, measured: dict) -> dict:
    """A line of the table."""
    seconds = statistics.median(measured["seconds"])
    return {
        "case": case,
        "predicted": predicted,
        "measured": measured,
        "memory_factor": factor(predicted["bytes"], measured["bytes"]),
        "time_factor": factor(predicted["seconds"], seconds),
    }


def document(record: dict) -> str:
    """The Markdown page."""
    lines = [HEADS]
    for line in record["rows"]:
        predicted, measured = line["predicted"], line["measured"]
        name = ", ".join(f"{key} {value}" for key, value in line["case"].items())
        memory = f"{predicted['bytes'] / 2**20:,.0f} | {measured['bytes'] / 2**20:,.0f} | {line['memory_factor']:.2f}"
        seconds = 1e3 * predicted["seconds"], 1e3 * statistics.median(measured["seconds"])
        lines.append(f"| {name} | {memory} | {seconds[0]:,.0f} | {seconds[1]:,.0f} | {line['time_factor']:.2f} |")
    parts = [
        "# The plan beside measured steps",
        "Aligned learning with the default model on synthetic scenes of 5 s, or as named; fp32 where not named. Memory "
        "is what steps take at their peak, weights included; time is the median step, without data loading. Each case "
        "in a process of its own.",
        "\n".join(lines),
        f"Worst factor: {record['worst_memory']:.2f} in memory, {record['worst_time']:.2f} in time.",
        record["reading"],
        f"{record['steps']} steps after a first one. Command: `python benchmarks/check_plan.py`.",
        ", ".join(f"{name}: {value}" for name, value in record["environment"].items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_a_process(*arguments: str) -> dict:
    """What this script prints with `arguments`."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(cases: list[dict] = CASES, scenes: dict = SCENES) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/check_plan/data"), help="folder for the scenes")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    parser.add_argument("--steps", type=int, default=3, help="steps to time")
    parser.add_argument("--reading", default="", help="a sentence for the page")
    parser.add_argument("--measure", help="a case as JSON: measure it and print what was found")
    parser.add_argument("--predict", help="a case as JSON: plan it, for captions of --caption_tokens, and print")
    parser.add_argument("--caption_tokens", type=int)
    options = parser.parse_args()
    data = str(options.data)
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure), data, options.steps)))
        return
    if options.predict:
        print(json.dumps(predict(json.loads(options.predict), data, options.caption_tokens)))
        return
    if not options.data.exists():
        atk("soundscapes", options.data, *flags(scenes))
    rows = []
    for case in cases:
        text, common = json.dumps(case), ("--data", data)
        measured = in_a_process("--measure", text, *common, "--steps", str(options.steps))
        tokens = str(measured["caption_tokens"])
        rows.append(row(case, in_a_process("--predict", text, *common, "--caption_tokens", tokens), measured))
    record = {
        "scenes": scenes,
        "steps": options.steps,
        "rows": rows,
        "worst_memory": max(line["memory_factor"] for line in rows),
        "worst_time": max(line["time_factor"] for line in rows),
    }
    write_results(options.results / "plan", record, document, options.reading)
    print((options.results / "plan.md").read_text())


if __name__ == "__main__":
    main()
