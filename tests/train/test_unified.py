"""One model by all methods: terms and gradients equal those of each method, schedules, and mistakes."""

from dataclasses import fields, replace

import pytest
import torch
from support.runs import parsed_config, unified_arguments

import atk
from atk.cli.main import main
from atk.data import MixtureBatch, TrainDataset
from atk.train import grad_cache
from atk.train.aligned import AlignedConfig, AlignedTask
from atk.train.difference import DifferenceConfig, DifferenceTask
from atk.train.semisupervised import SemiSupervisedTask
from atk.train.semisupervised_config import SemiSupervisedConfig
from atk.train.semisupervised_criterion import SemiSupervisedCriterion
from atk.train.trainer import Trainer
from atk.train.unified import UnifiedTask
from atk.train.unified_config import TERMS, UnifiedConfig, UnifiedLossConfig

CPU = torch.device("cpu")


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


def kinds(batch):
    """What occurs in a batch: clips alone (0), differences (1), and what clips have in common (2)."""
    return {int(bool(added)) + int(common) for added, common in zip(batch.added, batch.common, strict=True)}


def test_terms_equal_those_of_each_method(scenes, noises, tmp_path):
    mix = ("--mix.condition", "multi/same", "--mix.common", "0.5", "--mix.rate", "0.8")
    task = make_task(scenes, noises, tmp_path / "run", *mix, "--mapper.noise", "0")
    for module in (task.model, task.criterion):
        module.double().eval()
    batch = next(batch for batch in task.batches(0) if len(kinds(batch.labeled)) == 3)
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


def test_an_epoch_over_captions_mixes_in_each_clip_once(scenes, noises, tmp_path):
    task = make_task(scenes, noises, tmp_path / "run", "--epoch-over", "captions", "--mix.references", "null")
    assert len(task.recordings) == len(task.dataset.pool.clips) == 12
    captions = [caption for clip in task.recordings for caption in clip.captions]
    assert [clip.captions for clip in task.clips] == [(caption,) for caption in captions] and len(captions) > 12
    assert task.steps_per_epoch == len(captions) // 4


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
        (["--mix.common", "0.5", "--model.difference", "subtraction"], "mix.common: needs model.difference 'mask'"),
        (["--epoch-over", "files"], "--epoch-over must be one of"),
        (["--mix.test_folds", "[7]"], "no recording in the requested folds"),
        (["--mapper.noise", "-1"], "noise must be at least 0"),
        (["--mapper.frames", "encoder"], "mapper.frames must be 'projected' in unified training, got 'encoder'"),
        (["--mixgen", "0.5"], "mixgen must be 0, and tag_sampling null, in unified training"),
        (["--loss.timed-weight", "1"], "timed_weight and frame_weight must be 0 in unified training"),
        (["--loss.kind", "triplet", "--loss.learnable", "null"], "kind must be 'info_nce' or 'sigmoid' to learn from"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(scenes, noises, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        main(unified_arguments(scenes, noises, tmp_path / "run", *options))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error.splitlines()[-1] and not (tmp_path / "run").exists()
