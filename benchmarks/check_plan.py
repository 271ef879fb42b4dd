"""Compare the memory and time that `atk plan` predicts with those of real training steps, each in its own process."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from atk.bench.memory import peak_bytes
from atk.plan import Rates, Resources, plan
from atk.plan.step import STATE_BYTES
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.semisupervised import SemiSupervisedBatch, SemiSupervisedTask
from atk.train.semisupervised_config import SemiSupervisedConfig
from atk.train.trainer import Trainer
from experiments import flags, run_atk, write_results

CLIP_SECONDS = 5.0
SCENES = {"preset": "medium", "seconds": [CLIP_SECONDS, CLIP_SECONDS], "train": 512, "test": 8, "seed": 0}
CASES: list[dict] = [
    {"batch_size": 64},
    {"batch_size": 256},
    {"batch_size": 256, "micro_batch": 32},
    {"batch_size": 512, "micro_batch": 64},
    {"batch_size": 256, "activation_checkpointing": True},
    {"batch_size": 256, "micro_batch": 32, "precision": "bf16"},
    {"method": "semisupervised", "batch_size": 128, "micro_batch": 32},
]
HEADS = "| case | MiB predicted | measured | factor | ms predicted | measured | factor |\n|---|" + 6 * "---:|"


def make_config(case: dict[str, Any], data: str) -> AlignedConfig | SemiSupervisedConfig:
    """The configuration of a case."""
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "clip_seconds": CLIP_SECONDS, "workers": 0} | case
    options |= {"data": data, "out": f"{data}-run"}
    if options.pop("method", "aligned") == "semisupervised":
        return SemiSupervisedConfig(unlabeled=[data], **options)
    return AlignedConfig(**options)


def measure(case: dict, data: str, steps: int) -> dict:
    """Measure `steps` steps: peak memory in bytes, the seconds of each step, and the length of the captions in tokens.

    A step of two clips runs before the measurement, so that the libraries' buffers are not counted. It also allocates
    the optimizer's state, so the memory of the weights and their state is added to the measured growth.
    """
    config = make_config(case, data)
    device = torch.device("cpu")
    Path(config.out).mkdir(exist_ok=True)
    if isinstance(config, SemiSupervisedConfig):
        task = SemiSupervisedTask(config, device)
    else:
        task = AlignedTask(config, device)
    trainer = Trainer(task, config, device)
    task.model.train()
    seconds: list[float] = []
    caption_tokens: list[int] = []

    def train() -> None:
        batch = next(task.batches(0))
        captions = batch.labeled.captions if isinstance(batch, SemiSupervisedBatch) else batch.captions
        caption_tokens.append(task.model.tokenize(captions)["input_ids"].shape[1] - 2)
        for _ in range(steps + 1):
            start = time.perf_counter()
            trainer.update(batch)
            seconds.append(time.perf_counter() - start)
            trainer.step += 1

    trainer.update(next(task.batches(0)).split(2)[0])
    state_bytes = sum(STATE_BYTES * parameter.numel() for parameter in trainer.parameters)
    peak = peak_bytes(train, (), device) + state_bytes
    return {"caption_tokens": caption_tokens[0], "bytes": peak, "seconds": seconds[1:]}


def predict(case: dict, data: str, caption_tokens: int) -> dict:
    """The plan of a case, with the current rates of this CPU."""
    config = make_config(case, data)
    result = plan(config, Resources(Rates.of("cpu", config.precision == "bf16"), cpu=True), caption_tokens)
    return {"bytes": result.peak_bytes, "seconds": result.seconds, "plan": result.to_dict()}


def factor(predicted: float, measured: float) -> float:
    """Ratio of the larger to the smaller value."""
    return max(predicted / measured, measured / predicted)


def row(case: dict, predicted: dict, measured: dict) -> dict:
    """One row of the table."""
    seconds = statistics.median(measured["seconds"])
    return {
        "case": case,
        "predicted": predicted,
        "measured": measured,
        "memory_factor": factor(predicted["bytes"], measured["bytes"]),
        "time_factor": factor(predicted["seconds"], seconds),
    }


def render_page(record: dict) -> str:
    """The Markdown page."""
    lines = [HEADS]
    for line in record["rows"]:
        predicted, measured = line["predicted"], line["measured"]
        name = ", ".join(f"{key} {value}" for key, value in line["case"].items())
        memory = f"{predicted['bytes'] / 2**20:,.0f} | {measured['bytes'] / 2**20:,.0f} | {line['memory_factor']:.2f}"
        seconds = 1e3 * predicted["seconds"], 1e3 * statistics.median(measured["seconds"])
        lines.append(f"| {name} | {memory} | {seconds[0]:,.0f} | {seconds[1]:,.0f} | {line['time_factor']:.2f} |")
    parts = [
        "# Predicted and measured training steps",
        (
            "Aligned learning with the default model on synthetic scenes of 5 s in fp32, unless the case says "
            "otherwise. Memory is the peak during the steps, including weights; time is the median step, without data "
            "loading. Each case runs in its own process."
        ),
        "\n".join(lines),
        f"Worst factor: {record['worst_memory']:.2f} in memory, {record['worst_time']:.2f} in time.",
        record["interpretation"],
        f"{record['steps']} steps after a first, untimed one. Command: `python benchmarks/check_plan.py`.",
        ", ".join(f"{name}: {value}" for name, value in record["environment"].items()) + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def in_a_process(*arguments: str) -> dict:
    """Run this script with `arguments` in a new process and return the JSON that it prints."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main(cases: list[dict] = CASES, scenes: dict = SCENES) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("runs/check_plan/data"), help="folder for the scenes")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    parser.add_argument("--steps", type=int, default=3, help="steps to time")
    parser.add_argument("--interpretation", default="", help="text for the page, interpreting the results")
    parser.add_argument("--measure", help="a case as JSON: measure it and print the result")
    parser.add_argument(
        "--predict", help="a case as JSON: plan it for captions of --caption_tokens tokens and print it"
    )
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
        run_atk("soundscapes", options.data, *flags(scenes))
    rows = []
    for case in cases:
        text = json.dumps(case)
        common = ("--data", data)
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
    write_results(options.results / "plan", record, render_page, options.interpretation)
    print((options.results / "plan.md").read_text())


if __name__ == "__main__":
    main()
