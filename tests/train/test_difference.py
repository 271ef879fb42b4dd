"""Difference learning end to end on tiny scenes: the four objectives, exact resume, evaluation, captions, errors."""

import csv
import json
import os
import random
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.runs import difference_arguments, kill_at_a_random_moment, rows, weights

import atk.eval.captioning
from atk.cli.main import main
from atk.train.difference import DifferenceTask

MODES = {"input", "mix", "minus_added"}


pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def mask_run(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("difference") / "run"
    main(difference_arguments(scenes, out))
    return out


def same_weights(run, expected):
    return all(torch.equal(weights(run)[name], value) for name, value in weights(expected).items())


def test_run_folder_is_complete(mask_run):
    summary = json.loads((mask_run / "summary.json").read_text())
    assert summary["method"] == "difference" and summary["steps"] == 12 and summary["backend"] == "sdpa"
    assert set(summary["metrics"]) == {*MODES, "named", "missing", "tokenizer", "clips", "skipped", "unmixed"}
    assert set(summary["metrics"]["input"]) | set(summary["metrics"]["missing"]) == {
        "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE", "SPIDEr", "SPIDEr-FL", "FENSE",
    }  # fmt: skip
    assert [row["step"] for row in rows(mask_run) if "val/log_likelihood" in row] == [4, 8, 12]
    config = yaml.safe_load((mask_run / "config.yaml").read_text())
    assert config["objective"] == config["model"]["difference"] == "mask"
    with (mask_run / "captions_test.csv").open() as file:
        listing = list(csv.DictReader(file))
    assert len(listing) == 6 and set(listing[0]) == {"file_name", "added", *MODES, "minus_input"}
    assert all(row["added"].startswith("audio/5-") for row in listing)  # the held-out fold


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["plain", "pairmix", "subtraction"])
def test_every_objective_trains(scenes, tmp_path, objective):
    main(difference_arguments(scenes, tmp_path / "run", "--objective", objective, "--eval-every", 0))
    metrics = json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]
    modes = MODES if objective == "subtraction" else MODES - {"minus_added"}
    assert set(metrics) - {"named", "missing", "tokenizer", "clips", "skipped", "unmixed"} == modes
    assert all(row["loss"] > 0 for row in rows(tmp_path / "run") if "loss" in row)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["same/diff", "diff/diff", "multi/same", "multi/diff"])
def test_every_condition_trains(scenes, tmp_path, condition):
    main(difference_arguments(scenes, tmp_path / "run", "--mix.condition", condition, "--steps", 2))
    assert (tmp_path / "run" / "summary.json").is_file()


@pytest.mark.slow
def test_learning_lowers_the_loss(scenes, tmp_path):
    main(difference_arguments(scenes, tmp_path / "run", "--steps", 60, "--eval-every", 0, "--optim.lr", 1e-2))
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


@pytest.mark.slow
def test_without_references_other_clips_are_mixed_in(scenes, tmp_path):
    command = [argument for argument in difference_arguments(scenes, tmp_path / "run") if "pool" not in argument]
    command.remove("--mix.references")
    main([*command, "--steps", "2"])
    with (tmp_path / "run" / "captions_test.csv").open() as file:
        listing = list(csv.DictReader(file))
    assert all(row["added"].startswith("audio/test/") and row["added"] != row["file_name"] for row in listing)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(mask_run, scenes, tmp_path):
    out = tmp_path / "killed"
    kill_at_a_random_moment(difference_arguments(scenes, out), out, random.Random(3))
    assert not (out / "summary.json").exists()
    main(["train", "difference", "--out", str(out), "--resume"])
    assert same_weights(out, mask_run)
    assert [row.get("loss") for row in rows(out)] == [row.get("loss") for row in rows(mask_run)]


@pytest.mark.slow
def test_a_run_starts_from_another_captioner(mask_run, scenes, tmp_path):
    options = ["--objective", "subtraction", "--init", mask_run, "--steps", 1, "--optim.lr", 1e-9]
    main(difference_arguments(scenes, tmp_path / "run", *options, "--model.decoder.width", 998))
    best = load_file(mask_run / "checkpoints" / "best" / "model.safetensors")
    expected = {name: value for name, value in best.items() if not name.startswith("difference_block")}
    after = weights(tmp_path / "run")
    assert set(after) == set(expected)
    for name, value in expected.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value)


@pytest.mark.slow
def test_a_run_resumes_without_the_run_that_it_started_from(mask_run, scenes, tmp_path):
    start, out = tmp_path / "start", tmp_path / "run"
    shutil.copytree(mask_run, start, symlinks=True)
    options = ["--init", start, "--steps", 1, "--optim.lr", 1e-9]
    main(difference_arguments(scenes, out, *options))
    best = load_file(start / "checkpoints" / "best" / "model.safetensors")
    block = {name: value for name, value in weights(out).items() if name.startswith("difference_block")}
    assert block  # the same Diff block, so it is kept
    for name, value in block.items():
        torch.testing.assert_close(value, best[name])
    shutil.rmtree(start)
    (out / "summary.json").unlink()
    main(["train", "difference", "--out", str(out), "--resume"])
    assert (out / "summary.json").is_file()
    with pytest.raises(SystemExit):
        main(difference_arguments(scenes, tmp_path / "other", *options, "--resume"))  # a new run needs `start`


@pytest.mark.slow
def test_runs_from_before_references_were_trimmed_go_on_without(mask_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(mask_run, out, symlinks=True)
    saved = json.loads((out / "checkpoints" / "last" / "config.json").read_text())
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert saved.pop("trim_references") and settings["model"].pop("trim_references")
    (out / "checkpoints" / "last" / "config.json").write_text(json.dumps(saved))  # as they were written then
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    main(["train", "difference", "--out", str(out), "--resume", "--steps", "13"])
    assert yaml.safe_load((out / "config.yaml").read_text())["model"]["trim_references"] is False
    assert rows(out)[-2]["step"] == 13 and len(weights(out)) == len(weights(mask_run))


@pytest.mark.slow
def test_number_of_workers_changes_nothing(mask_run, scenes, tmp_path):
    main(difference_arguments(scenes, tmp_path / "run", "--workers", 2))
    assert same_weights(tmp_path / "run", mask_run)


def test_evaluate_repeats_the_summary_and_lists_clips(mask_run, scenes, capsys):
    main(["evaluate", str(mask_run), "--data", str(scenes), "--examples", "2", "--workers", "0"])
    printed = capsys.readouterr().out
    result, end = json.JSONDecoder().raw_decode(printed)
    summary = json.loads((mask_run / "summary.json").read_text())["metrics"]
    for mode in MODES:
        assert result[mode] == pytest.approx(summary[mode])
    assert printed[end:].count("minus_input") == 2


def test_evaluate_writes_captions_only_to_out(mask_run, scenes, tmp_path, capsys):
    before = {path: path.read_bytes() for path in mask_run.iterdir() if path.is_file()}
    command = ["evaluate", str(mask_run), "--data", str(scenes), "--split", "val", "--workers", "0", "--beams", "1"]
    main([*command, "--condition", "diff/diff", "--out", str(tmp_path / "captions.csv")])
    assert {path: path.read_bytes() for path in mask_run.iterdir() if path.is_file()} == before
    with (tmp_path / "captions.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--out", str(scenes / "val.csv")])
    assert "val.csv exists and is not a listing of captions" in capsys.readouterr().err


def test_caption_describes_a_file_and_a_difference(mask_run, scenes, capsys, monkeypatch):
    audio = str(scenes / "audio" / "test" / "00000.wav")
    main(["caption", str(mask_run), audio])
    assert capsys.readouterr().out.count("\n") == 1
    other = str(scenes / "audio" / "test" / "00001.wav")
    original = atk.eval.captioning.caption_file
    calls = []
    monkeypatch.setattr(
        atk.eval.captioning, "caption_file", lambda *args, **options: calls.append(args) or original(*args, **options)
    )
    main(["caption", str(mask_run), "--reference", other, audio, "--reference", audio])
    assert calls[0][1:] == (audio, [other, audio]) and capsys.readouterr().out.count("\n") == 1
    main(["caption", str(mask_run), audio, "--clip-seconds", "0.5"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].startswith("0.5-1.0 s  ")


def test_caption_takes_the_settings_of_the_search_and_the_modes_of_the_mask(mask_run, scenes, capsys):
    audio, *others = (str(scenes / "audio" / "test" / f"0000{n}.wav") for n in range(3))
    references = [word for other in others for word in ("--reference", other)]
    for options in (["--common"], ["--repeated"], ["--min-length", "6", "--no-repeat-ngram-size", "1"]):
        main(["caption", str(mask_run), audio, *references, *options])
        assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.slow
def test_evaluate_lists_the_captions_of_a_baseline(mask_run, scenes, tmp_path, capsys):
    main(difference_arguments(scenes, tmp_path / "plain", "--objective", "plain", "--steps", 1))
    capsys.readouterr()
    command = ["evaluate", str(mask_run), "--data", str(scenes), "--split", "val", "--workers", "0", "--beams", "1"]
    main([*command, "--repeated", "--baseline", str(tmp_path / "plain"), "--out", str(tmp_path / "captions.csv")])
    result, _ = json.JSONDecoder().raw_decode(capsys.readouterr().out)
    assert set(result["baseline"]) > MODES  # without a Diff block, it subtracts features
    with (tmp_path / "captions.csv").open() as file:
        assert {f"baseline_{mode}" for mode in (*MODES, "minus_input")} < set(next(csv.DictReader(file)))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["caption", "RUN", "AUDIO", "--common"], "common: needs references, and a model with a mask"),
        (["caption", "RUN", "AUDIO", "--min-length", "-1"], "min_length must be at least 0, got -1"),
        (["caption", "RUN", "missing.wav"], "missing.wav: no such file"),
        (["align", "RUN", "missing.wav", "a dog"], "this command needs a CLAP"),
        (["evaluate", "RUN", "--data", "SCENES", "--condition", "other"], "--condition must be one of 'same/same', "),
        (["evaluate", "RUN", "--data", "SCENES", "--references", "nowhere"], "nowhere"),
        (["evaluate", "RUN", "--data", "SCENES", "--tags"], "tags: "),
        (["evaluate", "RUN", "--data", "SCENES", "--zero-shot"], "zero_shot: "),
        (["evaluate", "RUN", "--data", "SCENES", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
        (["evaluate", "RUN", "--data", "SCENES", "--beams", "0"], "beams must be at least 1, got 0"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(mask_run, scenes, capsys, command, message):
    places = {"RUN": str(mask_run), "SCENES": str(scenes), "AUDIO": str(scenes / "audio" / "test" / "00000.wav")}
    with pytest.raises(SystemExit) as stop:
        main([places.get(word, word) for word in command])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_captioner_without_a_diff_block_takes_no_references(scenes, tmp_path, capsys):
    main(difference_arguments(scenes, tmp_path / "run", "--objective", "plain", "--steps", 1))
    audio = str(scenes / "audio" / "test" / "00000.wav")
    with pytest.raises(SystemExit):
        main(["caption", str(tmp_path / "run"), audio, "--reference", audio])
    assert "trained without a Diff block" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_saves(mask_run, scenes, tmp_path, monkeypatch):
    original = DifferenceTask.encode
    calls = []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(DifferenceTask, "encode", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(difference_arguments(scenes, tmp_path / "run"))
    assert stop.value.code == 130
    main(difference_arguments(scenes, tmp_path / "run", "--resume"))
    assert same_weights(tmp_path / "run", mask_run)
