"""What difference learning trains and validates on: epochs over captions, held-out data, and errors in them."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from support.runs import SMALL_CAPTIONER, difference_arguments, kill_at_a_random_moment, weights

from atk.cli.main import main
from atk.data import AudioError, MixConfig
from atk.eval.embed import evaluating
from atk.models.captioner import CaptionerConfig
from atk.models.cnn14 import Cnn14Config
from atk.models.decoder import DecoderConfig
from atk.train.difference import DifferenceConfig, DifferenceTask

SMALL_MODEL = {
    "clip_seconds": 2.0,
    "model": CaptionerConfig(
        audio=Cnn14Config(channels=(4, 4, 8, 8, 8, 8), mel_bins=32),
        decoder=DecoderConfig(width=16, layers=1, heads=2, vocabulary=300),
        heads=2,
    ),
}

pytestmark = pytest.mark.usefixtures("no_java")


@pytest.mark.slow
def test_epochs_over_captions_with_common_parts_resume_to_the_same_bits(scenes, tmp_path):
    options = ["--epoch-over", "captions", "--mix.common", 0.5, "--mix.snr_db", "null", "--mix.rate", 1]
    out = tmp_path / "killed"
    kill_at_a_random_moment(difference_arguments(scenes, out, *options), out, random.Random(5))
    main(["train", "difference", "--out", str(out), "--resume"])
    main(difference_arguments(scenes, tmp_path / "other", *options))
    assert all(torch.equal(weights(out)[name], value) for name, value in weights(tmp_path / "other").items())


def test_an_epoch_over_captions_has_every_caption_once(scenes, tmp_path):
    values = {"objective": "plain", "batch_size": 1, "workers": 0, "epoch_over": "captions"} | SMALL_MODEL
    data = shutil.copytree(scenes, tmp_path / "data")
    table = (data / "train.csv").read_text().splitlines()
    name = table[1].split(",")[0]
    (data / "train.csv").write_text("\n".join([*table, f"{name},a second caption", f"{name},a third one"]) + "\n")
    task = DifferenceTask(DifferenceConfig(str(data), str(tmp_path / "run"), **values), torch.device("cpu"))
    clips = len(task.recordings)
    texts = sorted(caption for clip in task.recordings for caption in clip.captions)
    assert task.steps_per_epoch == len(texts) == 2 * clips + 2
    batches = task.batches(0)
    seen = [next(batches) for _ in range(task.steps_per_epoch)]
    assert sorted(batch.captions[0] for batch in seen) == texts
    assert sum(batch.files[0] == name for batch in seen) == 4
    resumed = task.batches(20)
    assert [next(resumed).captions for _ in seen[20:]] == [batch.captions for batch in seen[20:]]
    with pytest.raises(ValueError, match="epoch_over must be one of 'clips', 'captions', got 'words'"):
        DifferenceConfig("data", "run", epoch_over="words")
    with pytest.raises(ValueError, match=r"mix\.common: needs objective 'mask', got 'plain'"):
        DifferenceConfig("data", "run", objective="plain", mix=MixConfig(common=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mix.references", "POOL", "--mix.test_folds", "[7]"], "no recording in the requested folds; its folds are"),
        (["--objective", "plain", "--mix.condition", "diff/diff"], "the folder has no classes"),
        (["--objective", "plain"], "references: none of 1 can be mixed into audio/test/00000.wav"),
        (["--objective", "mask", "--model.difference", "subtraction"], "model.difference must be 'mask' for objective"),
        (["--mix.references", "POOL", "--model.decoder.layers", "0"], "layers must be at least 1, got 0"),
    ],
)
def test_errors_in_the_held_out_split_are_reported_before_training(scenes, tmp_path, capsys, options, message):
    data = shutil.copytree(scenes, tmp_path / "data")
    (data / "test.csv").write_text("".join((data / "test.csv").read_text().splitlines(keepends=True)[:2]))
    options = [str(data / "pool") if word == "POOL" else word for word in options]
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                "difference",
                "--data",
                str(data),
                "--out",
                str(tmp_path / "run"),
                *SMALL_CAPTIONER.split(),
                *options,
            ]
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_captioners_cannot_be_sharded():
    with pytest.raises(ValueError, match="shard: captioners cannot be sharded"):
        DifferenceConfig("d", "o", shard=True)


def test_validation_weights_all_tokens_equally(scenes, tmp_path):
    config = DifferenceConfig(str(scenes), str(tmp_path), objective="plain", batch_size=3, workers=0, **SMALL_MODEL)
    task = DifferenceTask(config, torch.device("cpu"))
    losses, counts = [], []
    with torch.no_grad(), evaluating(task.model):
        for item in (task.validation[index, 0] for index in range(len(task.validation))):
            batch = task.validation.collate([item])
            losses.append(float(task.loss_of(task.encode(batch))[0]))
            counts.append(int(task.model.tokenize(batch.captions)["attention_mask"].sum()))
    assert len(set(counts)) > 1
    expected = -sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
    assert task.validate()["log_likelihood"] == pytest.approx(expected, rel=1e-5)


def test_validation_names_clips_that_cannot_be_decoded(scenes, tmp_path):
    bad = shutil.copytree(scenes, tmp_path / "data") / "audio" / "val" / "00001.wav"
    soundfile.write(bad, np.full(8000, np.nan), 16000, subtype="FLOAT")
    config = DifferenceConfig(str(tmp_path / "data"), str(tmp_path), objective="plain", workers=0, **SMALL_MODEL)
    with pytest.raises(AudioError, match=r"00001\.wav: contains NaN"):
        DifferenceTask(replace(config, on_error="raise"), torch.device("cpu")).validate()
    for path in set(bad.parent.iterdir()) - {bad}:
        shutil.copy(bad, path)
    with pytest.raises(ValueError, match=r"none of the 4 validation clips can be decoded"):
        DifferenceTask(config, torch.device("cpu")).validate()
