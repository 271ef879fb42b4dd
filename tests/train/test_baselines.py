"""The baselines of the contrastive methods: triplet loss, word vectors, sampled tags, and mixed pairs."""

import pytest
import torch
import yaml
from support.runs import CONFIG, arguments, parsed_config, rows, training_state, weights

from atk.cli.main import main
from atk.models.clap import ModelConfig
from atk.models.text import TextEncoderConfig
from atk.nn import TripletLoss
from atk.plan.encoders import trace_encoders
from atk.train.aligned import AlignedConfig, AlignedTask, LossConfig
from atk.train.contrastive import ContrastiveConfig
from atk.train.semisupervised_config import SemiSupervisedConfig, SemiSupervisedLossConfig
from atk.train.trainer import Trainer

TRIPLET = ["--loss.kind", "triplet", "--loss.learnable", "null", "--loss.aligned-weight", "0"]


@pytest.fixture
def vectors(tmp_path):
    words = ["a", "low", "middle", "high", "tone", *map(str, range(12))]
    values = torch.randn(len(words), 6).tolist()
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, values, strict=True)))
    return path


def power_cut():
    raise RuntimeError("power cut")


@pytest.mark.slow
def test_a_triplet_run_with_word_vectors_resumes_to_the_same_weights(tiny_data, tmp_path, vectors, capsys, monkeypatch):
    options = [*TRIPLET, "--model.text.vectors", str(vectors), "--tag-sampling", "one", "--mixgen", "0.5"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main(arguments(tiny_data, whole, *options, "--steps", "6"))
    assert "text.vectors: 1 of 18 words have no vector: number" in capsys.readouterr().err
    update = Trainer.update
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", lambda self, batch: update(self, batch) if self.step < 5 else power_cut())
        with pytest.raises(RuntimeError, match="power cut"):
            main(arguments(tiny_data, resumed, *options, "--steps", "6"))
    vectors.unlink()  # the checkpoint of step 4 has what it needs
    main(["train", "aligned", "--out", str(resumed), "--resume"])
    training = [row for row in rows(resumed) if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] == pytest.approx(row["triplet"]) and "logit_scale" not in row for row in training)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(whole).items())
    assert training_state(resumed)["criterion"] == {}
    assert yaml.safe_load((resumed / "config.yaml").read_text())["loss"]["kind"] == "triplet"


def task(tiny_data, tmp_path, *options):
    values = parsed_config(arguments(tiny_data, tmp_path / "run", *options))
    config = AlignedConfig(**{name: values[name] for name in AlignedConfig.__dataclass_fields__})
    return AlignedTask(config, torch.device("cpu"))


def test_the_task_compares_global_vectors_and_knows_equal_captions(tiny_data, tmp_path):
    trained = task(tiny_data, tmp_path, *TRIPLET, "--loss.negatives", "semi-hard", "--loss.margin", "0.3")
    batch = next(iter(trained.batches(0)))
    batch.captions[1] = batch.captions[0]
    embeddings = trained.encode(batch)
    assert set(embeddings) == {"audio", "text", "captions"}
    ids = embeddings["captions"]
    assert ids[0] == ids[1] and len(set(ids.tolist())) == len(batch) - 1 and ids.max() < 2**48
    loss, terms = trained.loss_of(embeddings)
    expected = TripletLoss(0.3, "semi-hard")(embeddings["audio"], embeddings["text"], ids)
    assert set(terms) == {"triplet"} and torch.equal(loss, expected) and trained.readings() == {}


def test_captions_of_batches_are_drawn_from_tags_and_mixed(tiny_data, tmp_path):
    both = task(tiny_data, tmp_path, "--mixgen", "1", "--tag-sampling", "shuffle")
    assert all(caption.count(" and ") == 1 for caption in next(iter(both.batches(0))).captions)
    assert both.dataset.tag_sampling == "shuffle"


def test_what_does_not_go_together_is_refused(tmp_path):
    for loss, message in (
        ({"kind": "triplet"}, "aligned_weight must be 0, and global_weight above 0, for the triplet loss"),
        (
            {"kind": "triplet", "temperature": 0.1},
            "must be null for the triplet loss, which has no temperature, got 0.1",
        ),
        ({"kind": "triplet", "learnable": True}, "must be null for the triplet loss, which has no temperature"),
        (
            {"kind": "triplet", "aligned_weight": 0.0, "frame_weight": 1.0},
            "timed_weight and frame_weight must be 0 for the triplet loss",
        ),
        ({"negatives": "hard"}, "negatives must be one of"),
        ({"margin": -1.0}, "margin must be above 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            LossConfig(**loss)
    with pytest.raises(ValueError, match="kind must be 'info_nce' or 'sigmoid' to learn from unlabeled audio"):
        SemiSupervisedLossConfig(kind="triplet")
    words = ModelConfig(text=TextEncoderConfig(vectors="vectors.txt"))
    with pytest.raises(ValueError, match=r"model\.text\.vectors must be null, as word vectors take no pseudo-tokens"):
        SemiSupervisedConfig("data", "out", unlabeled=["audio"], model=words)
    triplet = LossConfig(kind="triplet", aligned_weight=0.0)
    for options, message in (
        ({"loss": triplet, "gather": "ring"}, "gather must be 'all' for the triplet loss, got 'ring'"),
        ({"tag_sampling": "some"}, "tag_sampling must be one of"),
        ({"mixgen": 2.0}, r"mixgen must be in \[0, 1\], got 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            ContrastiveConfig("data", "out", **options)
    with pytest.raises(ValueError, match="mixgen must be 0 with timed captions"):
        AlignedConfig("data", "out", loss=LossConfig(frame_weight=1.0), mixgen=0.5)
    with pytest.raises(ValueError, match=r"loss\.kind: steps with the triplet loss cannot be planned"):
        trace_encoders(AlignedConfig("data", "out", loss=triplet), 4)


@pytest.mark.slow
def test_a_music_tagging_transformer_trains_in_parts(tiny_data, tmp_path):
    audio = CONFIG["model"]["audio"] | {"type": "music-tagging-transformer", "hop": 160}
    options = ["--model.audio", str(audio), "--micro-batch", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    main(arguments(tiny_data, whole, *options, "--steps", "4"))
    main(arguments(tiny_data, resumed, *options, "--steps", "4", "--save-every", "2", "--optim.final", "0.01"))
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(resumed).items())
    state = weights(resumed)
    assert state["audio_encoder.input_norm.num_batches_tracked"] == 8  # two parts of each of four steps
    assert state["audio_encoder.input_norm.running_mean"].abs() > 1  # in dB
