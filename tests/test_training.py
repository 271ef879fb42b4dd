"""Training end to end on a tiny data set: run folders, exact resume after a kill, clean stops, refusals."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from atk import checkpoint
from atk.checkpoint import best_or_last
from atk.cli import main
from atk.config import OptimConfig
from atk.trainer import lr_factor

NOTES = {"low": 220, "middle": 660, "high": 1980}
CONFIG = {
    "steps": 8,
    "batch_size": 4,
    "clip_seconds": 0.5,
    "workers": 0,
    "log_every": 1,
    "save_every": 2,
    "eval_every": 4,
    "optim": {"lr": 0.003},
    "loss": {"learnable": True},
    "model": {
        "dim": 16,
        "audio": {"mel_bins": 16, "channels": [4, 4, 8, 8], "width": 32, "layers": 1, "heads": 2},
        "text": {"width": 32, "layers": 1, "heads": 2},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones and their captions: 12 to train on, 4 to validate, 6 to test."""
    folder = tmp_path_factory.mktemp("data set")
    draw = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 6)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "caption"])
            for number in range(count):
                name = list(NOTES)[number % 3]
                samples = np.arange(int(16000 * draw.uniform(0.4, 0.9)))
                tone = 0.5 * np.sin(2 * np.pi * NOTES[name] * draw.uniform(0.9, 1.1) / 16000 * samples)
                soundfile.write(folder / f"{split} {number}.wav", tone, 16000)
                rows.writerow([f"{split} {number}.wav", f"a {name} tone number {number}"])
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def arguments(folder, out, *more):
    return [
        "train", "aligned", "--config", str(folder / "tiny.yaml"), "--data", str(folder), "--out", str(out), *more,
    ]  # fmt: skip


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "checkpoints" / "last" / "model.safetensors")


def training_state(out):
    return torch.load(out / "checkpoints" / "last" / "training.pt", weights_only=True)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run that nobody interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    main(arguments(folder, out))
    return out


def test_run_folder_is_complete(finished, folder):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["method"] == "aligned" and summary["steps"] == 8 and summary["split"] == "test"
    for direction in ("text_to_audio", "audio_to_text"):
        assert set(summary["metrics"][direction]) == {"R@1", "R@5", "R@10", "mAP@10", "MedR"}
    training = [row for row in rows(finished) if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 9))
    assert {"loss", "global", "aligned", "lr", "grad_norm", "examples_per_second", "memory_mib"} <= set(training[0])
    assert [row["step"] for row in rows(finished) if "val/R@1" in row] == [4, 8]
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["model"]["audio"]["hop"] == 320 and config["data"] == str(folder) and config["steps"] == 8
    assert list((finished / "tensorboard").iterdir())
    assert best_or_last(finished).name in ("best", "last")


def test_its_configuration_repeats_the_run(finished, tmp_path):
    main(["train", "aligned", "--config", str(finished / "config.yaml"), "--out", str(tmp_path / "again")])
    assert all(torch.equal(weights(finished)[name], value) for name, value in weights(tmp_path / "again").items())


def test_learning_lowers_the_loss(folder, tmp_path):
    main(arguments(folder, tmp_path / "run", "--steps", "60", "--log_every", "10", "--eval-every", "0"))
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]


def killed_at_a_random_moment(folder, out, draw):
    """Start the run in a process of its own and SIGKILL it after a random number of steps and a random wait."""
    command = [sys.executable, "-c", "import sys; from atk.cli import main; main(sys.argv[1:])", *arguments(folder, out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    steps = draw.randrange(1, 7)
    while process.poll() is None:
        if (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) >= steps:
            time.sleep(draw.random() * 0.05)
            break
        time.sleep(0.002)
    process.kill()
    process.wait()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_run_resumes_to_the_same_bits(finished, folder, tmp_path, seed):
    out = tmp_path / "killed"
    killed_at_a_random_moment(folder, out, random.Random(seed))
    assert not (out / "summary.json").exists()
    main(["train", "aligned", "--out", str(out), "--resume"])
    assert {name for name, value in weights(out).items() if not torch.equal(value, weights(finished)[name])} == set()
    assert torch.equal(
        training_state(out)["criterion"]["log_logit_scale"], training_state(finished)["criterion"]["log_logit_scale"]
    )

    def curve(folder):
        return [(row["step"], row.get("loss"), row.get("val/R@1")) for row in rows(folder)]

    assert curve(out) == curve(finished)


def test_number_of_workers_changes_nothing(finished, folder, tmp_path):
    main(arguments(folder, tmp_path / "run", "--workers", "2"))
    assert all(torch.equal(weights(finished)[name], value) for name, value in weights(tmp_path / "run").items())


def test_ctrl_c_finishes_the_step_and_saves(finished, folder, tmp_path, monkeypatch, capsys):
    from atk.aligned import AlignedTask

    whole = AlignedTask.loss

    def interrupted(self, batch):
        interrupted.calls += 1
        if interrupted.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(self, batch)

    interrupted.calls = 0
    monkeypatch.setattr(AlignedTask, "loss", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, tmp_path / "run"))
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    assert training_state(tmp_path / "run")["step"] == 3
    monkeypatch.setattr(AlignedTask, "loss", whole)
    main(arguments(folder, tmp_path / "run", "--resume"))
    assert all(torch.equal(weights(finished)[name], value) for name, value in weights(tmp_path / "run").items())


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_files(folder, tmp_path, monkeypatch, capsys):
    from atk.aligned import AlignedTask

    whole = AlignedTask.loss
    monkeypatch.setattr(AlignedTask, "loss", lambda self, batch: (whole(self, batch)[0] * math.nan, {}))
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, tmp_path / "run"))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "loss nan" in error and error.count(".wav") == 4


def test_bf16_autocast_trains(folder, tmp_path):
    main(arguments(folder, tmp_path / "run", "--precision", "bf16", "--steps", "2"))
    assert all(math.isfinite(row["loss"]) for row in rows(tmp_path / "run") if "loss" in row)


def test_an_interrupted_save_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    class Model(torch.nn.Module):
        def save_pretrained(self, folder):
            folder.mkdir()
            (folder / "weights").write_text("whole")

    checkpoint.save_checkpoint(tmp_path, 1, Model(), {"step": 1}, best=True)
    for name in ("rename", "replace"):

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, name, killed)
            checkpoint.save_checkpoint(tmp_path, 2, Model(), {"step": 2}, best=False)
        assert checkpoint.load_state(tmp_path, torch.device("cpu")) == {"step": 1}
    checkpoint.save_checkpoint(tmp_path, 2, Model(), {"step": 2}, best=False)
    assert checkpoint.load_state(tmp_path, torch.device("cpu")) == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last", "step-00000001", "step-00000002"]
    checkpoint.save_checkpoint(tmp_path, 3, Model(), {"step": 3}, best=False)
    assert not (tmp_path / "step-00000002").exists()


def test_schedule_warms_up_and_decays():
    optim = OptimConfig(warmup=0.1, final=0.01)
    factors = [lr_factor(step, 100, optim) for step in range(100)]
    assert factors[0] == 0.1 and factors[9] == 1.0 == max(factors)
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.02


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--optim.lr", "-1"], "lr and clip_norm must be above 0"),
        (["--optim.rate", "1"], "optim.rate"),
        (["--model.audio.mel_bins", "40"], "mel_bins must be a positive multiple of 16"),
        (["--device", "cuda:99"], "device: 'cuda:99' is not available here"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--backend", "triton"], "backend 'triton'"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(folder, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


def test_a_folder_that_holds_a_run_is_not_overwritten(finished, folder, capsys):
    before = Path(finished / "summary.json").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, finished))
    assert stop.value.code == 2 and "--resume" in capsys.readouterr().err
    assert Path(finished / "summary.json").stat().st_mtime_ns == before
