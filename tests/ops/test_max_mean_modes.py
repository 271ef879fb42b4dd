"""Packed and paired sequences, kept and recomputed winners, skipped pairs: on every backend that runs on this machine.

Triton runs here in its interpreter only: `test_max_mean_triton.py` starts these cases again in that way.
"""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support.public_cases import BACKENDS, cpp_runs, gradients, loop_similarity, ragged

import atk
from atk.ops import max_mean_op

LENGTHS = (9, 0, 4, 1), (7, 2, 0, 30, 5)  # frames of the clips, tokens of the captions


def packed(width=6, dtype=torch.float32):
    sides = []
    for lengths in LENGTHS:
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
        sides.append((torch.randn(sum(lengths), width).to(dtype), cu_seqlens))
    (audio, cu_audio), (text, cu_text) = sides
    return audio, text, cu_audio, cu_text


def padded(rows, lengths):
    value = torch.nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True)
    return value, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", ["audio", "text", "both"])
@pytest.mark.parametrize("given", [False, True])
def test_varlen_equals_padded_with_mask(backend, direction, given):
    audio, text, cu_audio, cu_text = packed()
    longest = {"max_seqlen_audio": 12, "max_seqlen_text": 30} if given else {}

    def op(audio, text):
        return atk.max_mean_similarity_varlen(
            audio, text, cu_audio, cu_text, direction=direction, normalize=True, backend=backend, **longest
        )

    def padded_op(audio, text):
        (audio, audio_mask), (text, text_mask) = padded(audio, LENGTHS[0]), padded(text, LENGTHS[1])
        return atk.max_mean_similarity(
            audio, text, audio_mask, text_mask, direction=direction, normalize=True, backend="reference"
        )

    wanted = gradients(padded_op, audio.double(), text.double())
    for got, want in zip(gradients(op, audio, text), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loose_bounds_and_strided_rows_change_nothing(backend):
    audio, text = torch.randn(6, 5), torch.randn(6, 7)
    cu_audio, cu_text = torch.tensor([0, 2, 5]).int(), torch.tensor([0, 3, 3, 7]).int()

    def op(backend, **longest):
        return lambda a, t: atk.max_mean_similarity_varlen(a.T, t.T, cu_audio, cu_text, backend=backend, **longest)

    wanted = gradients(op("reference"), audio.double(), text.double())
    for longest in ({}, {"max_seqlen_audio": 1000, "max_seqlen_text": 300}):
        for got, want in zip(gradients(op(backend, **longest), audio, text), wanted, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    empty = torch.zeros(3).int()
    sim = atk.max_mean_similarity_varlen(
        audio[:0, :5], text.T[:, :5], empty, cu_text, max_seqlen_audio=5, backend=backend
    )
    assert sim.shape == (2, 3) and sim.eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", ["audio", "text", "both"])
def test_pairs_are_the_diagonal(backend, direction):
    audio, text, audio_mask, text_mask = ragged(captions=4)
    options = {"direction": direction, "normalize": True}

    def op(audio, text):
        return atk.max_mean_similarity_pairs(audio, text, audio_mask, text_mask, backend=backend, **options)

    def diagonal(audio, text):
        return atk.max_mean_similarity(audio, text, audio_mask, text_mask, backend="reference", **options).diagonal()

    wanted = gradients(diagonal, audio.double(), text.double())
    for got, want in zip(gradients(op, audio, text), wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairs", [False, True])
def test_recomputed_winners_give_the_same_gradients_bit_for_bit(backend, pairs, monkeypatch):
    audio, text, audio_mask, text_mask = ragged(captions=4)
    function = atk.max_mean_similarity_pairs if pairs else atk.max_mean_similarity

    def op(save_index):
        return lambda a, t: function(a, t, audio_mask, text_mask, save_index=save_index, backend=backend)

    saved, recomputed = gradients(op(True), audio, text), gradients(op(False), audio, text)
    assert all(map(torch.equal, saved, recomputed))
    assert all(map(torch.equal, saved, gradients(op(True), audio, text)))  # and over repeated runs
    monkeypatch.setattr(max_mean_op, "INDEX_BUDGET", 0)
    assert all(map(torch.equal, saved, gradients(op(None), audio, text)))


@cpp_runs
def test_the_budget_decides_what_is_saved(monkeypatch):
    audio, text = torch.randn(3, 10, 4, requires_grad=True), torch.randn(2, 300, 4)
    needed = 3 * 10 * 2 * 2  # two bytes each
    for budget, saved in ((needed, needed // 2), (needed - 1, 0)):
        monkeypatch.setattr(max_mean_op, "INDEX_BUDGET", budget)
        sim = atk.max_mean_similarity(audio, text, backend="cpp")
        index = next(value for value in sim.grad_fn.saved_tensors if value.dtype == torch.int16)
        assert index.numel() == saved


def test_gradcheck_of_the_forms():
    audio, text, audio_mask, text_mask = ragged(captions=4, dtype=torch.float64)
    leaves = audio.requires_grad_(), text.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, t: atk.max_mean_similarity_pairs(a, t, audio_mask, text_mask, normalize=True, backend="reference"),
        leaves,
    )
    *rows, cu_audio, cu_text = packed(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, t: atk.max_mean_similarity_varlen(a, t, cu_audio, cu_text, backend="reference"),
        [row.requires_grad_() for row in rows],
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_forms_compile_into_one_graph(backend):
    audio, text, cu_audio, cu_text = packed()

    def loss(audio, text):
        sim = atk.max_mean_similarity_varlen(
            audio, text, cu_audio, cu_text, max_seqlen_audio=9, max_seqlen_text=30, backend=backend, normalize=True
        )
        diagonal = atk.max_mean_similarity_pairs(
            audio.view(2, 7, -1), text[:14].view(2, 7, -1), save_index=False, backend=backend
        )
        return sim.sum() + diagonal.sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(gradients(compiled, audio, text), gradients(loss, audio, text), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"cu_seqlens_text": torch.tensor([0, 3])},
            TypeError,
            "cu_seqlens_text must be an int32 tensor, got torch.int64",
        ),
        ({"cu_seqlens_text": [0, 3]}, TypeError, "cu_seqlens_text must be an int32 tensor, got list"),
        ({"cu_seqlens_audio": torch.zeros(0).int()}, ValueError, r"must have shape \[N \+ 1\], got \[0\]"),
        ({"cu_seqlens_audio": torch.tensor([0, 5]).int()}, ValueError, "from 0 to the 6 rows of audio, got 0 to 5"),
        ({"cu_seqlens_audio": torch.tensor([0, 4, 2, 6]).int()}, ValueError, "must never decrease"),
        ({"cu_seqlens_audio": torch.tensor([0, 6], device="meta").int()}, ValueError, "on the device of audio"),
        ({"max_seqlen_text": -1}, ValueError, "max_seqlen_text must be at least 0"),
        ({"max_seqlen_text": 2}, ValueError, "max_seqlen_text must be at least the longest, 3, got 2"),
        (
            {"cu_seqlens_text": torch.tensor([0, 9]).int(), "max_seqlen_text": 9},
            ValueError,
            "from 0 to the 3 rows of text, got 0 to 9",
        ),
        ({"audio": torch.randn(1, 6, 5)}, ValueError, r"audio must have shape \[T_a, D\]"),
    ],
)
def test_errors_of_packed_input_name_the_argument(change, kind, message):
    arguments = {"audio": torch.randn(6, 5), "text": torch.randn(3, 5)}
    arguments |= {
        "cu_seqlens_audio": torch.tensor([0, 6]).int(),
        "cu_seqlens_text": torch.tensor([0, 3]).int(),
        **change,
    }
    with pytest.raises(kind, match=message):
        atk.max_mean_similarity_varlen(**arguments)


@cpp_runs
def test_compiled_calls_check_packed_input_too():
    function = torch.compile(atk.max_mean_similarity_varlen, fullgraph=True, backend="aot_eager")
    cu_seqlens = torch.tensor([0, 900]).int()
    with pytest.raises(ValueError, match="from 0 to the 3 rows of audio, got 0 to 900"):
        rows = torch.randn(3, 4)
        function(rows, rows, cu_seqlens, cu_seqlens, max_seqlen_audio=900, max_seqlen_text=900, backend="cpp")


def test_pairs_need_as_many_clips_as_captions():
    with pytest.raises(ValueError, match="same number N of pairs, got 3 and 2"):
        atk.max_mean_similarity_pairs(torch.randn(3, 2, 4), torch.randn(2, 2, 4))


def unit_batch(pairs=9, frames=7, tokens=5, width=16):
    """Captions that are noisy copies of their clip's frames, so that most softmax weights are small."""
    audio = F.normalize(torch.randn(pairs, frames, width), dim=-1)
    text = F.normalize(audio[:, :tokens] + 0.3 * torch.randn(pairs, tokens, width), dim=-1)
    audio_mask, text_mask = torch.rand(pairs, frames) > 0.2, torch.rand(pairs, tokens) > 0.2
    audio_mask[:, 0] = text_mask[:, 0] = True
    return audio, text, audio_mask, text_mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("direction", "reduction"), [("audio", "sum"), ("audio", "mean"), ("text", "sum")])
def test_skipped_pairs_stay_within_the_bound(backend, direction, reduction):
    audio, text, audio_mask, text_mask = unit_batch()
    scale = torch.tensor(20.0)

    def loss(skip_below):
        return lambda a, t, s: atk.aligned_info_nce(
            a, t, s, audio_mask, text_mask,
            direction=direction, reduction=reduction, skip_below=skip_below, backend=backend,
        )  # fmt: skip

    exact = gradients(loss(0), audio, text, scale)
    errors = []
    for skip_below in (0.01, 0.1, 0.5):
        value, grad_audio, grad_text, grad_scale = gradients(loss(skip_below), audio, text, scale)
        torch.testing.assert_close(value, exact[0])
        torch.testing.assert_close(grad_scale, exact[3])
        bound = skip_below * scale.item() / (2 if reduction == "mean" else 1)
        errors_of = (grad_audio - exact[1]).norm(dim=-1), (grad_text - exact[2]).norm(dim=-1)
        (by_mean, mean_mask), (by_max, _) = list(zip(errors_of, (audio_mask, text_mask), strict=True))[
            :: 1 if direction == "audio" else -1
        ]
        assert (by_mean.amax(1) <= bound / mean_mask.sum(1) + 1e-6).all()
        assert (by_max.sum(1) <= bound + 1e-6).all()
        errors.append(by_max.sum(1).max().item())
    assert 0 < errors[0] < errors[1] < errors[2]  # something was left out


@pytest.mark.parametrize("backend", BACKENDS)
def test_skipping_equals_a_loss_whose_small_weights_are_zero(backend):
    audio, text, audio_mask, text_mask = unit_batch()
    sim = torch.tensor(loop_similarity(audio, text, audio_mask, text_mask).tolist(), requires_grad=True)
    logits = 20 * sim
    (-(logits.log_softmax(1).diagonal().mean() + logits.log_softmax(0).diagonal().mean())).backward()
    weights = sim.grad * len(audio) / 20
    kept = torch.where(weights.abs() < 0.05, 0, sim.grad)
    assert 0 < (kept != 0).float().mean() < 0.5

    def chosen(audio, text):
        return (atk.max_mean_similarity(audio, text, audio_mask, text_mask, backend="reference") * kept).sum()

    def skipping(audio, text):
        return atk.aligned_info_nce(audio, text, 20.0, audio_mask, text_mask, skip_below=0.05, backend=backend)

    for got, want in zip(gradients(skipping, audio, text)[1:], gradients(chosen, audio, text)[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip_below", [-0.1, 2.0, math.nan])
def test_skip_below_must_be_a_weight(skip_below):
    with pytest.raises(ValueError, match="skip_below must be at least 0 and below 2"):
        atk.aligned_info_nce(torch.randn(2, 3, 4), torch.randn(2, 3, 4), 1.0, skip_below=skip_below)


_PEAK = """
import sys, torch, atk
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024 // 10**6
n = int(sys.argv[1])
audio, text = torch.randn(n, 250, 8, requires_grad=True), torch.randn(n, 4, 8, requires_grad=True)
atk.max_mean_similarity(audio[:2], text[:2], backend="cpp", save_index=False).sum().backward()
audio.grad = text.grad = None
before = peak()
atk.max_mean_similarity(audio, text, backend="cpp", save_index=sys.argv[2] == "save").sum().backward()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@cpp_runs
def test_recomputation_holds_no_memory_for_every_pair_and_frame():
    def peak(pairs, mode):
        command = [sys.executable, "-c", _PEAK, str(pairs), mode]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    # 1,024 * 1,024 * 250 winners take 262 MB; everything else is below 20, and the workspace 67.
    assert peak(1024, "recompute") < 120 < 250 < peak(1024, "save")
