"""Runs of unified training: complete run folders, exact resume, other settings, and every command on the run folder."""

import json
import random
import shutil

import pytest
import soundfile
import torch
import yaml
from support.runs import kill_at_a_random_moment, rows, training_state, unified_arguments, weights

import atk
from atk.cli.main import main
from atk.models import from_pretrained
from atk.models.clap import CLAP
from atk.train.unified_config import TERMS

ONLY_CAPTIONS = [word for term in TERMS if term != "caption" for word in (f"--loss.{term}_weight", "0")]
pytestmark = pytest.mark.usefixtures("no_java")


@pytest.fixture(scope="module")
def finished_run(no_java, scenes, noises, tmp_path_factory):
    out = tmp_path_factory.mktemp("unified") / "run"
    main(unified_arguments(scenes, noises, out))
    return out


@pytest.mark.slow
def test_run_folder_is_complete(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["method"] == "unified" and summary["steps"] == 6
    assert {"text_to_audio", "audio_to_text", "captioning"} <= set(summary["metrics"])
    assert {"input", "mix", "minus_added"} <= set(summary["metrics"]["captioning"])
    assert (finished_run / "captions_test.csv").is_file()
    training = [row for row in rows(finished_run) if "loss" in row]
    assert all(row["loss"] == pytest.approx(sum(row[term] for term in TERMS), rel=1e-5) for row in training)
    (first, *_) = [row for row in rows(finished_run) if "val/score" in row]
    likelihood = torch.tensor(first["val/log_likelihood"]).exp()
    assert first["val/score"] == pytest.approx((first["val/mAP@10"] + 100 * float(likelihood)) / 2, rel=1e-4)


@pytest.mark.slow
def test_every_command_takes_the_run_folder(finished_run, scenes, tmp_path, capsys):
    run, audio, other = (str(path) for path in (finished_run, *sorted((scenes / "audio" / "test").iterdir())[:2]))
    summary = json.loads((finished_run / "summary.json").read_text())["metrics"]
    main(["evaluate", run, "--data", str(scenes), "--workers", "0", "--examples", "2"])
    printed = capsys.readouterr().out
    result, end = json.JSONDecoder().raw_decode(printed)
    assert result["text_to_audio"] == pytest.approx(summary["text_to_audio"])
    assert result["captioning"]["input"] == pytest.approx(summary["captioning"]["input"])
    assert printed[end:].count("minus_input") == 2
    main(["caption", run, audio])
    main(["caption", run, audio, "--reference", other])
    alone, difference = capsys.readouterr().out.splitlines()
    for options in (["--common"], ["--repeated", "--min-length", "6", "--no-repeat-ngram-size", "1"]):
        main(["caption", run, audio, "--reference", other, *options])
    common, _ = capsys.readouterr().out.splitlines()
    main(["embed", run, str(scenes), "--out", str(tmp_path / "vectors.npy")])
    main(["search", run, str(scenes / "audio" / "test"), "a dog"])
    main(["align", run, audio, "a dog", "--out", str(tmp_path / "align.png")])
    assert "00000.wav" in capsys.readouterr().out and (tmp_path / "align.png").is_file()
    model = atk.load(run, device="cpu")
    assert model.embed_audio([audio, other]).shape == (2, 16) and model.embed_text("a dog").shape == (1, 16)
    (start, end, text), *_ = model.caption(audio, beams=2)
    assert (start, text) == (0.0, alone) and end <= 2.0
    waveform, rate = soundfile.read(other, dtype="float32")
    assert model.caption(audio, rate, references=[torch.from_numpy(waveform)], beams=2)[0][2] == difference
    assert model.caption(audio, references=[other], beams=2, common=True)[0][2] == common


@pytest.mark.slow
def test_evaluate_takes_the_settings_of_the_search_and_a_baseline(finished_run, scenes, noises, tmp_path, capsys):
    plain = ("--model.difference", "none", *ONLY_CAPTIONS, "--steps", "1", "--eval-every", "0")
    main(unified_arguments(scenes, noises, tmp_path / "plain", *plain))
    capsys.readouterr()
    search = ("--repeated", "--beams", "1", "--min-length", "5")
    command = ["evaluate", str(finished_run), "--data", str(scenes), "--split", "val", "--workers", "0", *search]
    main([*command, "--baseline", str(tmp_path / "plain"), "--out", str(tmp_path / "captions.csv")])
    result = json.JSONDecoder().raw_decode(capsys.readouterr().out)[0]
    assert "text_to_audio" in result and "minus_added" in result["captioning"]["baseline"]  # it subtracts features
    assert "baseline_minus_input" in (tmp_path / "captions.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_a_run_from_before_the_trimming_of_references_goes_on_without_it(scenes, noises, tmp_path):
    run = tmp_path / "run"
    main(unified_arguments(scenes, noises, run, "--model.trim_references", "false", "--steps", "2"))
    for path in (run / "checkpoints").rglob("config.json"):
        values = json.loads(path.read_text())
        if values.pop("trim_references", None) is not None:
            path.write_text(json.dumps(values))
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"].pop("trim_references") is False
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    main(["train", "unified", "--out", str(run), "--resume", "--steps", "3"])
    assert from_pretrained(run).config.trim_references is False


@pytest.mark.slow
def test_a_contrastive_run_gets_a_decoder_and_a_unified_run_goes_on(finished_run, scenes, noises, tmp_path):
    unified = from_pretrained(finished_run)
    clap = CLAP.from_pretrained(finished_run)
    assert type(clap) is CLAP
    clap.save_pretrained(tmp_path / "clap")
    more = ("--steps", "1", "--optim.lr", "1e-9", "--eval-every", "0")
    for source, width in ((finished_run, 16), (tmp_path / "clap", 8)):
        out = tmp_path / str(width)
        main(unified_arguments(scenes, noises, out, "--init", source, *more, "--model.decoder.width", "8"))
        after = weights(out)
        assert yaml.safe_load((out / "config.yaml").read_text())["model"]["decoder"]["width"] == width
        kept = unified if width == 16 else clap
        expected = kept.state_dict()  # has both names of weights that are shared
        assert {name.split(".")[0] for name in after.keys() & expected} == {name for name, _ in kept.named_children()}
        for name in after.keys() & expected:
            torch.testing.assert_close(after[name], expected[name], rtol=0, atol=1e-6)
    shutil.rmtree(tmp_path / "clap")
    main(["train", "unified", "--out", str(tmp_path / "8"), "--resume", "--steps", "2"])
    assert json.loads((tmp_path / "8" / "summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(scenes, noises, tmp_path):
    more = ("--steps", "10", "--loss.aligned_schedule", "[[0.3,0],[0.6,1]]", "--micro-batch", "3")
    main(unified_arguments(scenes, noises, tmp_path / "whole", *more))
    out = tmp_path / "killed"
    kill_at_a_random_moment(unified_arguments(scenes, noises, out, *more), out, random.Random(3))
    assert not (out / "summary.json").exists()
    main(["train", "unified", "--out", str(out), "--resume"])
    expected = weights(tmp_path / "whole")
    assert {name for name, value in weights(out).items() if not torch.equal(value, expected[name])} == set()
    resumed, whole = (training_state(run)["criterion"] for run in (out, tmp_path / "whole"))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items()) and len(whole) > 10
    assert [row.get("loss") for row in rows(out)] == [row.get("loss") for row in rows(tmp_path / "whole")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--model.difference", "subtraction", "--mix.condition", "multi/diff"),
        ("--model.difference", "none", "--model.audio.type", "cnn14", "--model.audio.frame_layer", "null",
         "--model.audio.channels", "[4,4,4,4,8,8]", "--model.audio.mel_bins", "32"),
        ("--activation-checkpointing", "true", "--loss.kind", "sigmoid"),
        ("--tune.lora.rank", "2", "--ema", "0.9", "--spec-augment.time-masks", "2"),
    ],
)  # fmt: skip
def test_other_settings_train(scenes, noises, tmp_path, more):
    if "--tune.lora.rank" in more:
        pytest.importorskip("peft")
    main(unified_arguments(scenes, noises, tmp_path / "run", *more, "--steps", "2"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["captioning"]["clips"] == 6
