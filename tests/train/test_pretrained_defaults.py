"""Runs that start from pretrained weights: learning rate, temperature, and a line that says what was chosen."""

import math

import pytest
import torch
import yaml
from support.audio_towers import save_checkpoint
from support.runs import rows, training_state

from atk.cli.main import main
from atk.models.clap import CLAP, ModelConfig
from atk.models.clap_transformers import ClapConfig
from atk.train.aligned import LossConfig


def scale(out, step=0):
    return [row["logit_scale"] for row in rows(out) if "logit_scale" in row][step]


def saved(out):
    return yaml.safe_load((out / "config.yaml").read_text())


def test_a_run_from_another_run_keeps_its_temperature_and_learns_slowly(tiny_run, tiny_data, tmp_path, capsys):
    run = tmp_path / "run"
    settings = yaml.safe_load((tiny_data / "tiny.yaml").read_text())
    settings = {name: value for name, value in settings.items() if name not in ("optim", "loss")}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(settings))
    command = ["train", "aligned", "--config", str(tmp_path / "plain.yaml"), "--data", str(tiny_data)]
    main([*command, "--out", str(run), "--init", str(tiny_run), "--steps", "2"])
    notes = capsys.readouterr().err
    assert "pretrained weights: optim.lr 5e-05, unless optim.lr is given" in notes
    assert "pretrained weights: the temperature of the checkpoint is learned, unless loss.learnable is false" in notes
    assert saved(run)["optim"]["lr"] == 5e-5 and saved(run)["loss"]["learnable"] is True
    state = torch.load(tiny_run / "checkpoints" / "best" / "training.pt", weights_only=True)
    expected = float(state["criterion"]["log_logit_scale"].exp())
    assert scale(run) == pytest.approx(expected, rel=1e-4) and abs(expected - 5) > 1e-4
    # Whatever is given is kept.
    given = ("--optim.lr", "0.002", "--loss.temperature", "0.5", "--loss.learnable", "false")
    main([*command, "--out", str(tmp_path / "given"), "--init", str(tiny_run), "--steps", "1", *given])
    assert "pretrained weights" not in capsys.readouterr().err
    assert scale(tmp_path / "given") == 2 and saved(tmp_path / "given")["optim"]["lr"] == 0.002
    # A run from scratch is as before.
    main([*command, "--out", str(tmp_path / "new"), "--steps", "1"])
    assert scale(tmp_path / "new") == pytest.approx(5)
    assert next(row["lr"] for row in rows(tmp_path / "new") if "lr" in row) == 5e-4


@pytest.mark.slow
def test_a_pretrained_tower_learns_slowly(tiny_data, tmp_path, capsys):
    save_checkpoint("Whisper", tmp_path / "whisper")
    settings = yaml.safe_load((tiny_data / "tiny.yaml").read_text())
    del settings["optim"]
    settings["model"]["audio"] = {"pretrained": str(tmp_path / "whisper")}
    (tmp_path / "tower.yaml").write_text(yaml.safe_dump(settings))
    run = tmp_path / "run"
    command = ["train", "aligned", "--config", str(tmp_path / "tower.yaml"), "--data", str(tiny_data), "--out"]
    main([*command, str(run), "--steps", "2"])
    assert "pretrained weights: optim.audio_lr 5e-05, unless optim.lr is given" in capsys.readouterr().err
    assert saved(run)["optim"]["audio_lr"] == 5e-5 and saved(run)["optim"]["lr"] is None
    main(["train", "aligned", "--out", str(run), "--resume", "--steps", "3"])
    assert training_state(run)["step"] == 3


def test_temperatures_are_taken_from_the_same_kind_of_loss_and_clamped():
    info_nce, sigmoid = LossConfig(), LossConfig("sigmoid")
    assert info_nce.starting_from(14.0, None).temperature == pytest.approx(1 / 14)
    assert info_nce.starting_from(250.0, None).temperature == pytest.approx(1 / 100)
    assert info_nce.starting_from(14.0, -9.0).temperature == 0.2
    assert sigmoid.starting_from(14.0, -9.0) == (pytest.approx(1 / 14), -9.0)
    assert sigmoid.starting_from(14.0, None) == (0.1, -10.0)
    assert LossConfig(temperature=0.3).starting_from(14.0, None).temperature == 0.3


def test_the_temperature_of_a_clap_model_is_kept(tmp_path):
    model, _ = save_checkpoint("HTS-AT", tmp_path / "clap")
    with torch.no_grad():
        model.logit_scale_a.fill_(math.log(33.0))
    model.save_pretrained(tmp_path / "clap")
    config = ClapConfig(str(tmp_path / "clap"))
    assert CLAP.create(ModelConfig(clap=config), ["a dog barks"]).logit_scale == pytest.approx(33.0)
    random = ClapConfig(str(tmp_path / "clap"), random_init=True)
    assert CLAP.create(ModelConfig(clap=random), ["a dog barks"]).logit_scale is None
