"""The plan: what a trace counts, how it is extrapolated, and the bytes of each part."""

import dataclasses

import pytest
import torch
from torch import nn

from atk.data import MixConfig
from atk.models.audio import AudioEncoderConfig
from atk.models.captioner_config import CaptionerConfig, Cnn14Config
from atk.models.clap import ModelConfig
from atk.models.decoder import DecoderConfig
from atk.models.text import TextEncoderConfig
from atk.models.unified import UnifiedModelConfig
from atk.plan import Rates, Resources, plan
from atk.plan.cost import Cost, LinearCost, Trace
from atk.plan.encoders import Encoders, _batch, _run, _task, trace_encoders
from atk.plan.step import STATE_BYTES, WORKSPACE_BYTES, Step
from atk.train.aligned import AlignedConfig, LossConfig
from atk.train.difference import DifferenceConfig
from atk.train.semisupervised_config import SemiSupervisedConfig, SemiSupervisedLossConfig
from atk.train.unified_config import UnifiedConfig, UnifiedLossConfig

RATES = Rates(1e12, 1e12, 1e10, 1e8, 1e9, 1e-6)
TINY = ModelConfig(
    16,
    AudioEncoderConfig(mel_bins=16, channels=(4, 4, 8, 8), width=32, layers=2, heads=2),
    TextEncoderConfig(width=32, layers=1, heads=2, vocabulary=500),
)
GIVEN = Encoders(
    parameters=10**6, gathered_parameters=2 * 10**5, cost=None, forward=0, waveform_bytes=4, embedding_bytes=4.0,
    aligned_bytes=0.0, itemsize=2, frames=250, tokens=14, valid_tokens=12, dim=512, terms=0,
)  # fmt: skip


def aligned(**options):
    return AlignedConfig("-", "-", model=TINY, clip_seconds=0.5, device="cpu", precision="fp32", **options)


def semisupervised(**loss):
    options = {"model": TINY, "clip_seconds": 0.5, "device": "cpu", "precision": "fp32", "unlabeled": ["-"]}
    return SemiSupervisedConfig("-", "-", loss=SemiSupervisedLossConfig(**loss), **options)


DECODER = DecoderConfig(width=16, layers=1, heads=2, vocabulary=300)


def difference(objective="mask", **options):
    audio = Cnn14Config(mel_bins=32, window=512, hop=160, channels=(4, 4, 4, 8, 8, 8))
    model = CaptionerConfig(audio=audio, decoder=DECODER, heads=2)
    given = {"model": model, "clip_seconds": 0.5, "device": "cpu", "precision": "fp32"}
    return DifferenceConfig("-", "-", objective=objective, **given | options)


def unified(**loss):
    parts = {name: getattr(TINY, name) for name in ("dim", "audio", "text")}
    model = UnifiedModelConfig(**parts, decoder=DECODER, heads=2)
    options = {"model": model, "clip_seconds": 0.5, "device": "cpu", "precision": "fp32", "unlabeled": ["-"]}
    return UnifiedConfig("-", "-", loss=UnifiedLossConfig(**loss), **options)


def planned(config, devices=1, memory=None, cpu=True):
    return plan(config, Resources(RATES, cpu, devices, memory), caption_tokens=5)


def parts_of(result):
    return {part.name.partition(":")[0]: part for part in result.parts}


def given_step(devices, cpu=False, **options):
    return Step(aligned(**options), Resources(RATES, cpu, devices), GIVEN)


def test_a_trace_counts_products_and_bytes_moved_and_alive():
    x, w = torch.randn(8, 16), torch.randn(16, 4)
    with Trace() as trace:
        y = (x @ w).T  # [4, 8]
        z = y + 1
        del y
        z = z * 2
        del z
    cost = trace.cost()
    assert cost.flops.sum() == 2 * 8 * 16 * 4
    product, view, added = 8 * 16 + 16 * 4 + 32, 0, 2 * 32
    assert cost.moved.tolist() == [4 * product, view, 4 * added, 4 * added]
    assert cost.held.tolist() == [128, 128, 256, 256] and cost.peak() == 256
    assert trace._held == 0


def test_a_trace_counts_random_numbers():
    with Trace() as trace:
        nn.functional.dropout(torch.ones(7, 3), 0.5)
    assert trace.cost().drawn.sum() == 21


def test_the_tightest_limit_sets_the_seconds():
    cost = Cost(*(torch.tensor(v).numpy() for v in ([2e12, 0.0, 0.0, 0.0], [False] * 4, [0.0, 3e10, 0.0, 0.0],
                                                    [0.0, 0.0, 5e8, 0.0], [0.0] * 4)))  # fmt: skip
    assert cost.seconds(RATES) == pytest.approx(2 + 3 + 5 + 1e-6)


@pytest.mark.parametrize(
    "config",
    [
        aligned(),
        aligned(activation_checkpointing=True),
        semisupervised(),
        unified(),
        difference(),
        difference("plain"),
        difference("subtraction", mix=MixConfig(condition="multi/same")),
    ],
)
def test_the_cost_of_many_clips_is_extrapolated_from_few(config):
    encoders, task = trace_encoders(config, 5), _task(config)
    clips = 6
    _, cost, forward = _run(task, _batch(task, clips, 5), bf16=False)
    scaled = encoders.cost.of(clips)
    assert scaled.flops.sum() == pytest.approx(cost.flops.sum(), rel=1e-6)
    assert scaled.moved.sum() == pytest.approx(cost.moved.sum(), rel=1e-3)
    assert scaled.peak() == pytest.approx(cost.peak(), rel=1e-3)
    assert encoders.forward == forward


def test_micro_batches_of_captioners_are_encoded_once_and_captions_are_not_contrasted():
    config = difference(batch_size=8, micro_batch=2)
    result, encoders = planned(config), trace_encoders(config, 5)
    assert parts_of(result)["encoders"].seconds == 4 * encoders.cost.of(2).seconds(RATES)
    assert not {"gather", "op", "logits"} & parts_of(result).keys() and result.einsum_bytes == 0


@pytest.mark.slow
def test_the_terms_of_a_unified_model_are_planned():
    terms = {name: trace_encoders(unified(**{f"{name}_weight": 0.0}), 5) for name in ("global", "aligned", "caption")}
    assert {name: (each.terms, each.frames > 0) for name, each in terms.items()} == {
        "global": (2, True), "aligned": (3, False), "caption": (3, True),
    }  # fmt: skip
    clip = 8000 * 4
    assert terms["global"].waveform_bytes == 4 * clip  # the mixture, the clip, the reference, and the unlabeled clip
    assert terms["caption"].waveform_bytes == 2 * clip
    assert terms["caption"].parameters < terms["global"].parameters  # the decoder is frozen


def test_the_words_of_a_decoder_are_counted():
    larger = dataclasses.replace(difference().model, decoder=dataclasses.replace(DECODER, vocabulary=400))
    more = planned(difference(model=larger)).facts["parameters"] - planned(difference()).facts["parameters"]
    assert more == 100 * DECODER.width


def test_a_model_with_more_operations_for_more_clips_is_refused():
    cost, next_cost = (Cost(*torch.zeros(5, count).numpy()) for count in (3, 4))
    with pytest.raises(ValueError, match="3 operations for 2 clips and 4 for 3"):
        LinearCost(2, cost, next_cost)


def test_the_sigmoid_loss_is_planned_like_the_other_but_sends_no_columns():
    config = aligned(loss=LossConfig("sigmoid", skip_below=0.01))
    alone, rank = parts_of(planned(config)), parts_of(planned(config, devices=2))
    other = parts_of(planned(aligned(loss=LossConfig(skip_below=0.01)), devices=2))
    assert alone["logits"].bytes > 0 and alone["logits"].seconds > 0
    (gather,) = (name for name in rank if name.startswith("gather"))
    assert 0 < rank[gather].seconds < other[gather].seconds and rank[gather].bytes == other[gather].bytes


def test_activation_checkpointing_holds_less_and_takes_longer():
    deep = dataclasses.replace(TINY, audio=dataclasses.replace(TINY.audio, width=128, layers=6))
    configs = (dataclasses.replace(aligned(activation_checkpointing=on), model=deep) for on in (False, True))
    plain, saving = (parts_of(planned(config))["encoders"] for config in configs)
    assert saving.bytes < 0.8 * plain.bytes
    assert saving.seconds > 1.1 * plain.seconds


def test_the_vocabulary_is_counted():
    larger = dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocabulary=700))
    parameters = planned(aligned()).facts["parameters"]
    assert planned(dataclasses.replace(aligned(), model=larger)).facts["parameters"] - parameters == 200 * 32


@pytest.mark.slow
def test_unlabeled_audio_is_encoded_too():
    with_unlabeled = planned(semisupervised())
    without = planned(semisupervised(mix_weight=0.0, unlabeled_weight=0.0))
    ratio = parts_of(with_unlabeled)["waveforms"].bytes / parts_of(without)["waveforms"].bytes
    assert ratio == 2
    flops = [trace_encoders(c, 5).cost.of(4).flops.sum() for c in (
        semisupervised(), semisupervised(mix_weight=0.0, unlabeled_weight=0.0))]  # fmt: skip
    assert flops[0] > 2.5 * flops[1]
    assert parts_of(with_unlabeled)["op"].bytes == 0 and with_unlabeled.einsum_bytes == 0


def test_micro_batches_bound_the_encoders_memory_and_cost_an_extra_forward():
    at_once, small, large = (
        planned(aligned(batch_size=batch, micro_batch=micro)) for batch, micro in ((256, None), (256, 16), (1024, 16))
    )
    assert parts_of(small)["encoders"].bytes == parts_of(large)["encoders"].bytes
    assert parts_of(small)["encoders"].bytes == pytest.approx(parts_of(at_once)["encoders"].bytes / 16, rel=0.05)
    assert parts_of(large)["embeddings and gradients"].bytes == 4 * parts_of(small)["embeddings and gradients"].bytes
    assert parts_of(small)["encoders"].seconds > 1.1 * parts_of(at_once)["encoders"].seconds
    embeddings = 256 * trace_encoders(aligned(), 5).embedding_bytes
    held = [parts_of(result)["embeddings and gradients"].bytes for result in (small, at_once)]
    assert held[0] - held[1] == 2 * embeddings  # besides their gradient, they are held in parts and joined
    assert small.peak_bytes < at_once.peak_bytes < sum(part.bytes for part in at_once.parts)


def test_a_micro_batch_as_large_as_the_batch_changes_nothing():
    assert planned(aligned(batch_size=16, micro_batch=16)).parts == planned(aligned(batch_size=16)).parts


def test_winners_are_saved_up_to_the_budget():
    step = given_step(1)
    saved, recomputed = step._op(1024), step._op(4096)
    assert saved.name == "op: winners saved" and saved.bytes == 1024 * 1024 * 250
    assert recomputed.name == "op: winners recomputed" and recomputed.bytes == WORKSPACE_BYTES
    product = 2 * 4096 * 4096 * 250 * 12 * 512
    assert recomputed.seconds == pytest.approx(4 * product / RATES.matmul)
    assert saved.seconds == pytest.approx(3 * product / 16 / RATES.matmul)


def test_both_directions_save_winners_of_frames_and_tokens():
    both = given_step(1, loss=LossConfig(direction="both"))._op(64)
    assert both.bytes == 64 * 64 * (250 + 12)


@pytest.mark.parametrize(("gather", "received", "held"), [("all", 88.1, 150.9), ("ring", 176.2, 37.7)])
def test_the_bytes_of_the_gather_match_the_documentation(gather, received, held):
    part = given_step(8, gather=gather)._gather(4096 // 8)
    columns = 3 * 2 * 7 / 8 * 4096 * 4
    assert (part.seconds * RATES.interconnect - columns) / 1e6 == pytest.approx(received, abs=0.06)
    assert part.bytes / 1e6 == pytest.approx(held, abs=0.1)
    assert given_step(1, gather=gather)._gather(4096).bytes == 0


def test_weights_are_replicated_or_sharded():
    alone, replicated = given_step(1)._weights(4), given_step(4)._weights(4)
    sharded = given_step(4, shard=True)._weights(4)
    assert alone.bytes == replicated.bytes == STATE_BYTES * 10**6
    assert sharded.bytes == STATE_BYTES * 10**6 / 4 + 4 * 2 * 10**5
    assert sharded.seconds > replicated.seconds > alone.seconds


def test_the_naive_einsum_and_the_reference_backend():
    assert given_step(2).einsum_bytes(128) == 2 * 128 * 256 * 250 * 14 * 2
    reference, fused = (planned(aligned(backend=name, batch_size=64)) for name in ("reference", "auto"))
    assert parts_of(reference)["op"].bytes == reference.einsum_bytes == fused.einsum_bytes
    assert parts_of(reference)["op"].bytes > 10 * parts_of(fused)["op"].bytes


def test_the_largest_batch_fits_and_one_more_clip_per_rank_does_not():
    config, memory = aligned(batch_size=8, micro_batch=4), 0.5
    result = planned(config, devices=2, memory=memory)
    assert result.largest_batch[4] > result.largest_batch[None] > 0
    for micro, batch in result.largest_batch.items():
        options = {"micro_batch": micro, "batch_size": batch}
        assert planned(dataclasses.replace(config, **options), 2).peak_bytes <= 0.9 * memory * 2**30
        options["batch_size"] += 2
        assert planned(dataclasses.replace(config, **options), 2).peak_bytes > 0.9 * memory * 2**30


def test_nothing_fits():
    assert set(planned(aligned(), memory=1e-4).largest_batch.values()) == {0}


def test_bf16_halves_embeddings():
    half, single = (planned(dataclasses.replace(aligned(batch_size=64), precision=p)) for p in ("bf16", "fp32"))
    ratio = parts_of(single)["embeddings and gradients"].bytes / parts_of(half)["embeddings and gradients"].bytes
    assert ratio == pytest.approx(2, rel=0.1)


def test_rates_of_a_gpu_by_name():
    by_name = Rates.of("NVIDIA H200", bf16=True)
    assert by_name.matmul == pytest.approx(989e12 / 2) and by_name.single < by_name.matmul
    assert Rates.of("h200", bf16=False).matmul == by_name.single
    with pytest.raises(ValueError, match=r"one of a100, .* got 'tpu'"):
        Rates.of("tpu", bf16=True)
