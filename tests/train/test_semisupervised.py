"""Semi-supervised training: the three loss terms, their gradients, unlabeled audio, and complete and resumed runs."""

import itertools
import json
import random
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.runs import (
    CONFIG,
    kill_at_a_random_moment,
    rows,
    semisupervised_arguments,
    semisupervised_config,
    semisupervised_task,
    training_state,
    weights,
)

import atk
from atk.cli.main import main
from atk.data import AudioError, Batch, UnlabeledAudio
from atk.models.saved import model_folder
from atk.train.semisupervised import SemiSupervisedBatch, mixture
from atk.train.semisupervised_config import SemiSupervisedConfig

TERMS = ("labeled", "mix", "unlabeled")


@pytest.fixture(scope="module")
def finished_run(tiny_data, noises, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    main(semisupervised_arguments(tiny_data, noises, out))
    return out


def test_run_folder_is_complete(finished_run):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["method"] == "semisupervised" and summary["steps"] == 12 and summary["skipped"] == 0
    for direction in ("text_to_audio", "audio_to_text"):
        assert set(summary["metrics"][direction]) == {"R@1", "R@5", "R@10", "mAP@10", "MedR"}
    training = [row for row in rows(finished_run) if "loss" in row]
    assert [row["step"] for row in training] == list(range(1, 13))
    for row in training:
        assert row["loss"] == pytest.approx(sum(row[term] for term in TERMS), rel=1e-5)


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("mapper", ["mlp", "transformer"])
def test_gradients_reach_encoders_and_mapper_from_each_term_alone(tiny_data, noises, tmp_path, term, mapper):
    off = {f"loss__{name}_weight": 0.0 for name in TERMS if name != term}
    task = semisupervised_task(tiny_data, noises, tmp_path, mapper__kind=mapper, **off)
    loss, parts = task.loss_of(task.encode(next(iter(task.batches(0)))))
    assert set(parts) == {term}
    loss.backward()

    def reached(module):
        return sum(weight.grad is not None and bool(weight.grad.any()) for weight in module.parameters())

    model = task.model
    for module in (model.audio_encoder, model.text_encoder, model.audio_projection, model.text_projection):
        assert reached(module) > 0
    word_embeddings = model.text_encoder.model.get_input_embeddings()
    assert reached(word_embeddings)
    if term == "labeled":
        assert task.criterion.mapper is None
    else:
        assert reached(task.criterion.mapper) == len(list(task.criterion.mapper.parameters()))


def test_terms_equal_their_equations(tiny_data, noises, tmp_path):
    task = semisupervised_task(tiny_data, noises, tmp_path, mapper__kind="mlp", mapper__noise=0.0, loss__mix_weight=0.5)
    task.model.eval()
    task.criterion.eval()
    batch = next(iter(task.batches(0)))
    total, parts = task.loss_of(task.encode(batch))
    model, labeled, unlabeled = task.model, batch.labeled, batch.unlabeled

    def info_nce(audio, text):
        unit = [torch.nn.functional.normalize(value, dim=-1) for value in (audio, text)]
        return atk.info_nce(*unit, task.criterion.info_nce.logit_scale)

    pseudo = task.criterion.mapper(model.encode_audio(unlabeled.audio, unlabeled.lengths).pooled)
    captions, prompts = (model.tokenize(text) for text in (labeled.captions, ["A sound of"] * len(unlabeled)))
    audio, lengths = mixture(labeled, unlabeled, len(labeled))
    expected = {
        "labeled": info_nce(
            model.encode_audio(labeled.audio, labeled.lengths).pooled, model.encode_text(captions).pooled
        ),
        "mix": info_nce(model.encode_audio(audio, lengths).pooled, model.encode_text(captions, pseudo).pooled),
        "unlabeled": info_nce(
            model.encode_audio(unlabeled.audio, unlabeled.lengths).pooled, model.encode_text(prompts, pseudo).pooled
        ),
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
    torch.testing.assert_close(total, expected["labeled"] + 0.5 * expected["mix"] + expected["unlabeled"])


def test_pseudo_tokens_go_before_the_end_token(tiny_data, noises, tmp_path, monkeypatch):
    task = semisupervised_task(tiny_data, noises, tmp_path, mapper__tokens=2, loss__labeled_weight=0.0)
    seen = []
    bert = task.model.text_encoder.model
    forward = bert.forward
    monkeypatch.setattr(bert, "forward", lambda **inputs: seen.append(inputs) or forward(**inputs))
    batch = next(iter(task.batches(0)))
    task.loss_of(task.encode(batch))
    words, tokenizer = bert.get_input_embeddings(), task.model.text_encoder.tokenizer
    for inputs, texts in zip(seen, (batch.labeled.captions, ["A sound of"] * len(batch.unlabeled)), strict=True):
        for row, text in enumerate(texts):
            ids = torch.tensor(tokenizer(text)["input_ids"])
            embedded, length = inputs["inputs_embeds"][row], len(ids)
            torch.testing.assert_close(embedded[: length - 1], words(ids[:-1]))
            torch.testing.assert_close(embedded[length + 1], words(ids[-1]))
            assert not any(torch.equal(embedded[position], words(ids[-1])) for position in (length - 1, length))
            assert inputs["attention_mask"][row].sum() == length + 2
            assert inputs["attention_mask"][row, : length + 2].all()


def test_fewer_captioned_than_unlabeled_clips(tiny_data, noises, tmp_path):
    task = semisupervised_task(tiny_data, noises, tmp_path)
    first = next(iter(task.batches(0)))
    labeled = Batch(
        first.labeled.audio[:2], first.labeled.lengths[:2], first.labeled.captions[:2], first.labeled.files[:2],
        first.labeled.clips[:2], [],
    )  # fmt: skip
    loss, _ = task.loss_of(task.encode(SemiSupervisedBatch(labeled, first.unlabeled)))
    assert torch.isfinite(loss)


@pytest.mark.slow
def test_a_few_unreadable_batches_are_skipped(tiny_data, noises, tmp_path, monkeypatch):
    original = UnlabeledAudio.load
    loads = itertools.count()

    def outage(self, index, *rest):
        if next(loads) in range(4, 40):
            raise AudioError(self.name(index), "stale handle")
        return original(self, index, *rest)

    monkeypatch.setattr(UnlabeledAudio, "load", outage)
    main(semisupervised_arguments(tiny_data, noises, tmp_path / "run"))
    steps = [row["step"] for row in rows(tmp_path / "run") if "loss" in row]
    assert steps[0] == 1 and steps[-1] == 12 and len(steps) < 12


def test_a_batch_holds_each_clip_of_a_small_pool_only_once(tiny_data, noises, tmp_path, capsys):
    task = semisupervised_task(tiny_data, noises / "more", tmp_path)
    batch = next(iter(task.batches(0)))
    assert len(batch.labeled) == 4 and len(set(batch.unlabeled.files)) == len(batch.unlabeled) == 2
    assert "unlabeled: 2 clips, fewer than batch_size 4" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--optim.name", "schedulefree"), ("--mapper.tokens", "4"), ("--mapper.kind", "mlp")])
def test_resuming_with_another_optimizer_or_mapper_fails_and_changes_nothing(finished_run, tmp_path, capsys, more):
    run = shutil.copytree(finished_run, tmp_path / "run", symlinks=True)
    line = ["train", "semisupervised", "--out", str(run), "--resume", "--steps", "13"]
    with pytest.raises(SystemExit) as stop:
        main([*line, *more])
    assert stop.value.code == 2 and "a different optimizer, loss or mapper" in capsys.readouterr().err.splitlines()[-1]
    main(line)
    assert json.loads((run / "summary.json").read_text())["steps"] == 13


def test_a_configuration_file_may_name_a_single_folder(noises):
    assert SemiSupervisedConfig("x", "y", unlabeled=str(noises)).unlabeled == [str(noises)]
    with pytest.raises(ValueError, match="names of folders or tar shards, got 2024"):
        SemiSupervisedConfig("x", "y", unlabeled=[2024])


def test_without_unlabeled_terms_no_folder_is_needed(tiny_data, tmp_path):
    out = tmp_path / "run"
    off = ["--loss.mix_weight", "0", "--loss.unlabeled_weight", "0", "--steps", "2"]
    main(["train", "semisupervised", "--config", str(tiny_data / "tiny.yaml"), "--data", str(tiny_data), "--out",
          str(out), *off])  # fmt: skip
    assert "mix" not in rows(out)[0] and not (out / "unlabeled.npz").exists()


def test_unlabeled_audio_must_be_given(tiny_data, tmp_path, capsys):
    line = ["train", "semisupervised", "--config", str(tiny_data / "tiny.yaml"), "--data", str(tiny_data)]
    with pytest.raises(SystemExit) as stop:
        main([*line, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2 and "unlabeled must name a folder" in capsys.readouterr().err


@pytest.mark.slow
def test_several_folders_may_follow_the_flag(tiny_data, noises, tmp_path):
    task = semisupervised_config(tiny_data, noises, tmp_path / "run", unlabeled=f"{noises / 'more'}")
    assert task.unlabeled == [str(noises / "more")]
    main(
        semisupervised_arguments(
            tiny_data, noises, tmp_path / "run", "--unlabeled", str(noises), str(noises / "more"), "--steps", "1"
        )
    )
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["unlabeled"] == [str(noises), str(noises / "more")]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "schedulefree"])
def test_a_killed_run_resumes_to_the_same_bits(tiny_data, noises, tmp_path, optimizer):
    if optimizer == "schedulefree":
        pytest.importorskip("schedulefree")
    more = ["--optim.name", optimizer]
    main(semisupervised_arguments(tiny_data, noises, tmp_path / "whole", *more))
    out = tmp_path / "killed"
    kill_at_a_random_moment(semisupervised_arguments(tiny_data, noises, out, *more), out, random.Random(3))
    assert not (out / "summary.json").exists() and (out / "checkpoints" / "last").is_dir()
    main(["train", "semisupervised", "--out", str(out), "--resume"])
    assert {
        name for name, value in weights(out).items() if not torch.equal(value, weights(tmp_path / "whole")[name])
    } == set()
    resumed, expected = (training_state(run)["criterion"] for run in (out, tmp_path / "whole"))
    assert all(torch.equal(resumed[name], expected[name]) for name in resumed) and len(resumed) > 10


@pytest.mark.slow
def test_schedule_free_saves_an_average_and_the_trained_weights(tiny_data, noises, tmp_path):
    pytest.importorskip("schedulefree")
    main(semisupervised_arguments(tiny_data, noises, tmp_path / "run", "--optim.name", "schedulefree"))
    saved = weights(tmp_path / "run")
    trained = training_state(tmp_path / "run")["trained"]
    assert not torch.equal(trained[0], next(iter(saved.values())))
    losses = [row["loss"] for row in rows(tmp_path / "run") if "loss" in row]
    assert len(losses) == 12 and losses[-1] < losses[0]


def test_starts_from_another_run(finished_run, tiny_data, noises, tmp_path):
    main(
        semisupervised_arguments(
            tiny_data, noises, tmp_path / "run", "--init", str(finished_run), "--steps", "1", "--optim.lr", "1e-9"
        )
    )
    before = load_file(model_folder(finished_run) / "model.safetensors")
    assert all(torch.allclose(before[name], value, atol=1e-6) for name, value in weights(tmp_path / "run").items())
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["dim"] == CONFIG["model"]["dim"] and saved["init"] == str(finished_run)


def test_resumes_without_the_run_that_it_started_from(finished_run, tiny_data, noises, tmp_path):
    first = shutil.copytree(finished_run, tmp_path / "first", symlinks=True)
    main(semisupervised_arguments(tiny_data, noises, tmp_path / "run", "--init", str(first), "--steps", "1"))
    shutil.rmtree(first)
    main(["train", "semisupervised", "--out", str(tmp_path / "run"), "--resume", "--steps", "2"])
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_bad_unlabeled_files_are_named_counted_and_replaced(tiny_data, noises, tmp_path, capsys):
    folder = shutil.copytree(noises, tmp_path / "noises")
    (folder / "broken.wav").write_text("no audio")
    main(semisupervised_arguments(tiny_data, folder, tmp_path / "run"))
    assert capsys.readouterr().err.count("broken.wav") == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["skipped"] == 1
    for name in folder.rglob("*.wav"):
        name.write_text("no audio")
    with pytest.raises(SystemExit) as stop:
        main(semisupervised_arguments(tiny_data, folder, tmp_path / "none"))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "no file of 10 batches in a row is readable" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--unlabeled", "/no/such/folder"], "/no/such/folder"),
        (["--mapper.kind", "linear"], "--mapper.kind must be one of 'mlp', 'transformer', got 'linear'"),
        (["--mapper.noise", "-1"], "noise must be at least 0"),
        (["--mapper.heads", "5"], "num_heads must"),
        (["--loss.mix_weight", "-1"], "mix_weight must be at least 0"),
        (
            ["--loss.labeled_weight=0", "--loss.mix_weight=0", "--loss.unlabeled_weight=0"],
            "labeled_weight, mix_weight and unlabeled_weight must not all be 0",
        ),
        (["--optim.name", "sgd"], "--optim.name must be one of 'adam', 'schedulefree', got 'sgd'"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tiny_data, noises, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        main(semisupervised_arguments(tiny_data, noises, tmp_path / "run", *more))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()
