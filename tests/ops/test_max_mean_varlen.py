"""`atk.max_mean_similarity_varlen` and `_pairs`: packed sequences, and clip i against caption i only.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import pytest
import torch
from support.public_cases import BACKENDS, cpp_runs, gradients, ragged

import atk

LENGTHS = (9, 0, 4, 1), (7, 2, 0, 30, 5)  # frames of the clips, tokens of the captions


def packed(width=6, dtype=torch.float32):
    audio, text = (torch.randn(sum(lengths), width).to(dtype) for lengths in LENGTHS)
    cu_audio, cu_text = (torch.tensor([0, *lengths]).cumsum(0).int() for lengths in LENGTHS)
    return audio, text, cu_audio, cu_text


def padded(rows, lengths):
    value = torch.nn.utils.rnn.pad_sequence(rows.split(lengths), batch_first=True)
    return value, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("direction", ["audio", "text", "both"])
@pytest.mark.parametrize("bounds_given", [False, True])
def test_varlen_equals_padded_with_mask(backend, direction, bounds_given):
    audio, text, cu_audio, cu_text = packed()
    bounds = {"max_seqlen_audio": 12, "max_seqlen_text": 30} if bounds_given else {}

    def op(audio, text):
        return atk.max_mean_similarity_varlen(
            audio, text, cu_audio, cu_text, direction=direction, normalize=True, backend=backend, **bounds
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

    def op(backend, **bounds):
        return lambda a, t: atk.max_mean_similarity_varlen(a.T, t.T, cu_audio, cu_text, backend=backend, **bounds)

    wanted = gradients(op("reference"), audio.double(), text.double())
    for bounds in ({}, {"max_seqlen_audio": 1000, "max_seqlen_text": 300}):
        for got, want in zip(gradients(op(backend, **bounds), audio, text), wanted, strict=True):
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


@pytest.mark.slow
def test_gradcheck_of_varlen_and_pairs():
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


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_varlen_and_pairs_compile_into_one_graph(backend):
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
    ("change", "error", "message"),
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
        ({"max_seqlen_text": 2}, ValueError, "max_seqlen_text must be at least the longest sequence, 3, got 2"),
        (
            {"cu_seqlens_text": torch.tensor([0, 9]).int(), "max_seqlen_text": 9},
            ValueError,
            "from 0 to the 3 rows of text, got 0 to 9",
        ),
        ({"audio": torch.randn(1, 6, 5)}, ValueError, r"audio must have shape \[T_a, D\]"),
    ],
)
def test_packed_input_errors_name_the_argument(change, error, message):
    arguments = {"audio": torch.randn(6, 5), "text": torch.randn(3, 5)}
    arguments |= {
        "cu_seqlens_audio": torch.tensor([0, 6]).int(),
        "cu_seqlens_text": torch.tensor([0, 3]).int(),
        **change,
    }
    with pytest.raises(error, match=message):
        atk.max_mean_similarity_varlen(**arguments)


def test_no_clip_at_all():
    none, one = torch.tensor([0]).int(), torch.tensor([0, 3]).int()
    sim = atk.max_mean_similarity_varlen(torch.randn(0, 5), torch.randn(3, 5), none, one)
    assert sim.shape == (0, 1)


@cpp_runs
def test_compiled_calls_check_packed_input():
    function = torch.compile(atk.max_mean_similarity_varlen, fullgraph=True, backend="aot_eager")
    cu_seqlens = torch.tensor([0, 900]).int()
    rows = torch.randn(3, 4)
    with pytest.raises(ValueError, match="from 0 to the 3 rows of audio, got 0 to 900"):
        function(rows, rows, cu_seqlens, cu_seqlens, max_seqlen_audio=900, max_seqlen_text=900, backend="cpp")
    cu_seqlens = torch.tensor([0, 2, 2, 3]).int()
    with pytest.raises(ValueError, match="max_seqlen_audio must be at least the longest sequence, 2, got 1"):
        function(rows, rows, cu_seqlens, cu_seqlens, max_seqlen_audio=1, max_seqlen_text=1)


def test_pairs_need_as_many_clips_as_captions():
    with pytest.raises(ValueError, match="same number N of pairs, got 3 and 2"):
        atk.max_mean_similarity_pairs(torch.randn(3, 2, 4), torch.randn(2, 2, 4))
