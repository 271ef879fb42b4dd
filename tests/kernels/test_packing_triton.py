"""Modes of the Triton max-mean kernels: packed input, length classes, pairs, recomputed winners, sparse gradients."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import (
    DTYPES,
    GRADIENT_ERROR,
    assert_close,
    assert_equal,
    backward,
    expected,
    forward,
    gradient,
    here,
    inputs,
    padded,
    ragged,
)  # fmt: skip

from atk.kernels.sequences import from_padded, index_dtype

CLIPS = [70, 0, 3]
CAPTIONS = [3, 20, 150, 0, 9, 33]  # every length class, and longer than a tile

SHORT = [3, 9, 4, 70, 1, 5, 8, 7, 6, 2, 0]  # more captions of one class than a tile holds


def rows(value, places):
    return value[places.to(value.device)]


@here
@pytest.mark.parametrize("dtype", [DTYPES[-1]], ids=str)
def test_packed_input_of_mixed_lengths_equals_padded_input_and_float64(dtype):
    audio, text = ragged(CLIPS, 16, dtype), ragged(CAPTIONS, 16, dtype)
    (audio_padded, frames), (text_padded, tokens) = padded(audio), padded(text)
    grad = gradient(len(CLIPS), len(CAPTIONS))
    sim, index = forward(audio, text)
    gradients = backward(grad, audio, text, index)
    sim_padded, index = forward(audio_padded, text_padded)
    assert torch.equal(sim, sim_padded)
    from_padded_rows = backward(grad, audio_padded, text_padded, index)
    kept = [rows(value, places) for value, places in zip(from_padded_rows, (frames, tokens), strict=True)]
    for value, other in zip(kept, gradients, strict=True):  # the parts that are summed follow the padded length
        assert_close(value, other, GRADIENT_ERROR[dtype])
    cubes = [x.rows.view(x.number, x.longest, 16).nan_to_num() for x in (audio_padded, text_padded)]
    masks = [x.mask.view(x.number, x.longest) for x in (audio_padded, text_padded)]
    wanted_sim, *wanted = expected(*cubes, *masks, grad)
    assert_close(sim, wanted_sim, 2e-6)
    for value, other in zip(from_padded_rows, wanted, strict=True):
        assert_close(value, other, GRADIENT_ERROR[dtype])


@here
@pytest.mark.parametrize("L_t, dtype", [(150, DTYPES[0]), *((7, dtype) for dtype in DTYPES[1:])])
def test_pairs_are_the_diagonal(L_t, dtype):
    audio, text, audio_mask, text_mask = inputs(5, 5, 70, L_t, 24, dtype)
    packed = from_padded(audio, audio_mask), from_padded(text, text_mask)
    grad = gradient(5)
    sim, index = forward(*packed, pairs=True)
    assert index.shape == (350,)
    wanted_sim, *wanted = expected(audio, text, audio_mask, text_mask, grad.diag())
    assert_close(sim, wanted_sim.diag(), 2e-6)
    gradients = backward(grad, *packed, index, pairs=True)
    for value, other in zip(gradients, wanted, strict=True):
        assert_close(value, other, GRADIENT_ERROR[dtype])
    assert_equal(backward(grad, *packed, None, pairs=True, sparse=True), gradients)


@here
@pytest.mark.parametrize("sparse, dtype", [(False, DTYPES[0]), *((True, dtype) for dtype in DTYPES[1:])])
def test_recomputed_winners_give_the_same_gradients_bit_for_bit(sparse, dtype):
    audio, text = ragged(CLIPS, 16, dtype), ragged(SHORT, 16, dtype)
    grad = gradient(len(CLIPS), len(SHORT), zeros=0.8)
    saved = backward(grad, audio, text, forward(audio, text)[1], sparse=sparse)
    for index_bytes in (1, 2**26):  # a tile at a time, all of a class
        assert_equal(backward(grad, audio, text, None, sparse=sparse, index_bytes=index_bytes), saved)


@here
def test_the_recompute_workspace_is_bounded():
    from atk.kernels import max_mean

    audio, text = ragged(CLIPS, 8), ragged(CAPTIONS * 4, 8)
    problem = max_mean.Problem(audio, text, False)
    for index_bytes in (1, 1500, 4000):
        for group in problem.groups(index_bytes):
            size = group.room * len(audio.rows) * index_dtype(text.longest).itemsize
            assert size <= index_bytes or group.room == group.kind.captions
    assert len(problem.groups(1)) > len(problem.groups(1500)) > len(problem.groups(2**26)) == 5


@here
@pytest.mark.parametrize("zeros, dtype", [(0.0, DTYPES[0]), (1.0, DTYPES[0]), *((0.9, dtype) for dtype in DTYPES)])
def test_sparse_equals_dense(zeros, dtype):
    audio, text, audio_mask, text_mask = inputs(4, 12, 20, 9, 16, dtype)
    packed = from_padded(audio, audio_mask), from_padded(text, text_mask)
    grad = gradient(4, 12, zeros=zeros)
    index = forward(*packed)[1]
    _, *wanted = expected(audio, text, audio_mask, text_mask, grad)
    dense, sparse = (backward(grad, *packed, index, sparse=sparse) for sparse in (False, True))
    for value, other, double in zip(sparse, dense, wanted, strict=True):
        assert_close(value, double, GRADIENT_ERROR[dtype])
        assert_close(value, other, 1e-6 if dtype == torch.float32 else GRADIENT_ERROR[dtype])


@here
def test_captions_are_ordered_by_class_in_whole_tiles():
    from atk.kernels.pack import pack_captions

    text = ragged(CAPTIONS, 32)
    captions = pack_captions(text, 64, False)
    order, length, row, taken = captions.slots.tolist()
    assert [CAPTIONS[caption] for caption in order] == length
    bounds = captions.bounds.tolist()
    assert [kind.tokens for kind in captions.classes] == [8, 16, 32, 64, 64] and bounds[-1] == len(CAPTIONS)
    for kind in captions.classes:
        members = range(bounds[kind.number], bounds[kind.number + 1])
        assert order[members.start : members.stop] == sorted(order[members.start : members.stop])
        assert row[members.start] % 64 == 0 and len(members) <= kind.bound
        for slot in members:
            shortest = kind.tokens + 1 if kind.chunked else kind.tokens // 2 + 1 if kind.number else 0
            assert length[slot] >= shortest and (kind.chunked or length[slot] <= kind.tokens)
            at = slice(row[slot], row[slot] + length[slot])
            begin = text.cu_seqlens[order[slot]]
            assert torch.equal(captions.rows[at], text.rows[begin : begin + length[slot]])
            padding = captions.rows[row[slot] + length[slot] : row[slot] + taken[slot]]
            assert (padding == (text.rows[begin] if length[slot] else 0)).all() and taken[slot] % kind.tokens == 0
    assert (captions.rows[captions.home == -1] == 0).all()


@here
def test_equal_lengths_make_one_class():
    from atk.kernels.pack import length_classes

    dense = from_padded(torch.zeros(5, 20, 4), None)
    assert [(kind.tokens, kind.bound, kind.tile_bound) for kind in length_classes(dense, 128, False)] == [(32, 5, 2)]
    assert [kind.tokens for kind in length_classes(dense._replace(mask=torch.ones(100) > 0), 128, False)] == [8, 16, 32]
    assert [kind.tokens for kind in length_classes(dense, 128, True)] == [128]


@here
def test_rows_beyond_two_to_the_31_are_refused():
    from atk.kernels.pack import pack_captions

    text = ragged([3], 1)._replace(rows=torch.empty(1, 1, device="meta").expand(2**30, 1))
    with pytest.raises(ValueError, match=r"text has too many tokens for the triton backend: \d+ packed rows"):
        pack_captions(text, 64, False)
