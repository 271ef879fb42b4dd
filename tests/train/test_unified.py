"""One model by all methods: terms equal those of each method, exact resume, and every command on the run folder."""

import json
import random
import shutil
from dataclasses import fields, replace

import pytest
import soundfile
import torch
import yaml
from support.runs import (
    kill_at_a_random_moment,
    parsed_config,
    rows,
    training_state,
    unified_arguments,
    weights,
)

import atk
from atk.cli.main import main
from atk.data import MixtureBatch, TrainDataset
from atk.models import from_pretrained
from atk.models.clap import CLAP
from atk.train import grad_cache
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.difference import DifferenceConfig, DifferenceTask
from atk.train.semisupervised import SemiSupervisedConfig, SemiSupervisedTask
from atk.train.semisupervised_criterion import SemiSupervisedCriterion
from atk.train.trainer import Trainer
from atk.train.unified import UnifiedTask
from atk.train.unified_config import TERMS, UnifiedConfig, UnifiedLossConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def no_java():
    """Hide java, as METEOR takes seconds per call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield


@pytest.fixture(scope="module")
def finished_run(scenes, noises, tmp_path_factory):
    out = tmp_path_factory.mktemp("unified") / "run"
    main(unified_arguments(scenes, noises, out))
    return out


def make_task(scenes, noises, out, *more):
    values = parsed_config(unified_arguments(scenes, noises, out, *more))
    return UnifiedTask(UnifiedConfig(**{field.name: values[field.name] for field in fields(UnifiedConfig)}), CPU)


def twin(make, config, task, criterion):
    """The task of a single method, with the model of a unified one."""
    other = make.__new__(make)  # the constructor would read data
    other.config, other.device, other.model, other.criterion = config, CPU, task.model, criterion
    return other


def only(*terms):
    return [word for term in TERMS if term not in terms for word in (f"--loss.{term}_weight", "0")]


def test_terms_equal_those_of_each_method(scenes, noises, tmp_path):
    task = make_task(scenes, noises, tmp_path / "run", "--mix.condition", "multi/same", "--mapper.noise", "0")
    for module in (task.model, task.criterion):
        module.double().eval()
    batch = next(task.batches(0))
    assert any(batch.labeled.added) and not all(batch.labeled.added)
    loss, terms = task.loss_of(task.encode(batch))
    assert set(terms) == set(TERMS)
    torch.testing.assert_close(loss, sum(terms.values()))
    clips = TrainDataset(task.clips, task.model.sample_rate, 2.0, task.config.seed)
    clean = clips.collate([clips[int(row), 0] for row in batch.labeled.clips])
    assert clean.captions == batch.labeled.captions and torch.equal(clean.audio, batch.labeled.unmixed().audio)

    aligned = twin(AlignedTask, AlignedConfig("-", "-"), task, task.criterion.pair_loss)
    expected = aligned.loss_of(aligned.encode(clean))[1]
    criterion = SemiSupervisedCriterion(atk.nn.InfoNCELoss().double(), task.criterion.mapper)
    semi = twin(SemiSupervisedTask, SemiSupervisedConfig("-", "-", unlabeled=["-"]), task, criterion)
    expected |= semi.loss_of(semi.encode(replace(batch, labeled=clean)))[1]
    torch.testing.assert_close(expected.pop("labeled"), terms["global"])
    difference = twin(DifferenceTask, DifferenceConfig("-", "-"), task, None)
    expected["caption"], _ = difference.loss_of(difference.encode(batch.labeled))
    assert set(expected) == set(TERMS)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-5, atol=1e-7, check_dtype=False)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_alone_costs_only_itself(scenes, noises, tmp_path, monkeypatch, term):
    task = make_task(scenes, noises, tmp_path / "run", *only(term), "--mix.rate", "0.5")
    encoded = []
    original = task.model.encode_clips
    monkeypatch.setattr(task.model, "encode_clips", lambda *clips: encoded.append(len(clips[0])) or original(*clips))
    batch = next(task.batches(0))
    loss, terms = task.loss_of(task.encode(batch))
    assert set(terms) == {term} and isinstance(batch.labeled, MixtureBatch) == (term == "caption")
    mixed = sum(map(bool, batch.labeled.added)) if term == "caption" else 0
    unlabeled = {"mix": 8, "unlabeled": 4}.get(term, 0)  # the mapper of `mix` needs the unlabeled clips, too
    assert encoded == [unlabeled or 4 + mixed]
    assert (batch.unlabeled is None) == (unlabeled == 0) == (task.criterion.mapper is None)
    loss.backward()
    reached = {name.split(".")[0] for name, weight in task.model.named_parameters() if weight.grad is not None}
    frozen = {name.split(".")[0] for name, weight in task.model.named_parameters() if not weight.requires_grad}
    captioner, retriever = {"projection", "difference_block", "decoder"}, {"text_encoder", "text_projection"}
    assert "audio_encoder" in reached and not frozen & reached
    assert reached >= captioner and not reached & retriever if term == "caption" else frozen >= captioner


@pytest.mark.parametrize("micro_batch", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_gradient_caching_gives_the_gradients_of_the_whole_batch(scenes, noises, tmp_path, micro_batch):
    gradients = []
    for size in (None, micro_batch):
        task = make_task(scenes, noises, tmp_path / "run", "--mapper.noise", "0", "--mix.rate", "0.7")
        for module in (task.model, task.criterion):
            module.double().eval()
        batch = next(task.batches(0))
        parts = [batch] if size is None else batch.split(size)
        loss, terms = grad_cache.backward(task, parts, CPU, lambda: torch.autocast("cpu", enabled=False))
        assert set(terms) == set(TERMS)
        named = [*task.model.named_parameters(), *task.criterion.named_parameters()]
        gradients.append({name: weight.grad for name, weight in named} | {"loss": loss})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-4, atol=1e-6)


def test_schedules_are_linear_between_points_and_turn_terms_off(scenes, noises, tmp_path):
    loss = UnifiedLossConfig(mix_weight=2.0, mix_schedule=[[0.5, 0], [0.75, 1]], caption_schedule=[[0, 1], [1, 0]])
    assert loss.weights(0.5) == {"global": 1.0, "aligned": 1.0, "unlabeled": 1.0, "caption": 0.5}
    assert loss.weights(0.625)["mix"] == 1.0 and loss.weights(1.0)["mix"] == 2.0
    task = make_task(scenes, noises, tmp_path / "run", "--loss.mix_schedule", "[[0.4,0],[0.6,1]]")
    seen = {}
    for step, batch in zip(range(1, 5), task.batches(1), strict=False):
        with torch.no_grad():
            loss, terms = task.loss_of(task.encode(batch))
        seen[step] = (
            float(loss - sum(value for name, value in terms.items() if name != "mix")),
            terms.get("mix"),
        )
    assert seen[1][1] is None and seen[2][1] is None
    assert seen[3][0] == pytest.approx(0.5 * float(seen[3][1]), rel=1e-4)
    assert seen[4][0] == pytest.approx(float(seen[4][1]), rel=1e-4)


def test_weights_that_no_term_trains_at_a_step_stay_as_they_are(scenes, noises, tmp_path):
    schedules = [f"--loss.{term}_schedule=[[0,1],[0.1,0]]" for term in ("caption", "mix", "unlabeled")]
    task = make_task(scenes, noises, tmp_path / "run", *schedules)
    trainer = Trainer(task, task.config, CPU)
    batches = task.batches(0)
    trainer.update(next(batches))  # fills the optimizer's moments
    trainer.step = 1
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    mapper = [value.clone() for value in task.criterion.mapper.parameters()]
    assert set(trainer.update(next(batches))) >= {"global", "aligned"}
    after = dict(task.model.named_parameters())
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed == {"audio_encoder", "audio_projection", "text_encoder", "text_projection"}
    assert all(map(torch.equal, mapper, task.criterion.mapper.parameters()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (only(), "the weights of all terms of the loss are 0 at 0 of the run"),
        ([*only("mix"), "--loss.mix_schedule", "[[0.5,1],[0.7,0]]"], "are 0 at 0.7 of the run"),
        (["--loss.mix_schedule", "[[0.5,1],[0.2,0]]"], "mix_schedule must have increasing fractions"),
        (["--loss.mix_schedule", "[[0.5,-1]]"], "mix_schedule must have factors of at least 0, got -1"),
        (["--loss.caption_weight", "-1"], "caption_weight must be at least 0"),
        ([*only("caption"), "--monitor", "mAP@10"], "monitor: no term of the loss that mAP@10 needs"),
        (["--model.difference", "add"], "difference must be one of"),
        (["--mix.test_folds", "[7]"], "no recording in the requested folds"),
        (["--mapper.noise", "-1"], "noise must be at least 0"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(scenes, noises, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main(unified_arguments(scenes, noises, tmp_path / "run", *options))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error.splitlines()[-1] and not (tmp_path / "run").exists()


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
