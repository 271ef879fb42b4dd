"""Triton max-mean kernels: packed input, length classes, pairs, recomputed winner indices, sparse gradients."""

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
    inputs,
    needs_gpu_or_interpreter,
    padded,
    ragged,
)  # fmt: skip

from atk.kernels.sequences import empty_packed, from_padded, index_dtype
from atk.kernels.tiles import SLOT_CAPTION, SLOT_FIELDS, SLOT_FIRST_ROW, SLOT_LENGTH, SLOT_NUM_ROWS

pytestmark = pytest.mark.triton

CLIPS = [70, 0, 3]
CAPTIONS = [3, 20, 150, 0, 9, 33]  # every length class, and a caption longer than a tile
SHORT = [3, 9, 4, 70, 1, 5, 8, 7, 6, 2, 0]  # more captions of one class than a tile holds


@needs_gpu_or_interpreter
@pytest.mark.parametrize("dtype", [DTYPES[-1]], ids=str)
def test_packed_input_of_mixed_lengths_equals_padded_input_and_float64(dtype):
    audio, text = ragged(CLIPS, 16, dtype), ragged(CAPTIONS, 16, dtype)
    (audio_padded, frames), (text_padded, tokens) = padded(audio), padded(text)
    grad = gradient(len(CLIPS), len(CAPTIONS))
    sim, index = forward(audio, text)
    packed_gradients = backward(grad, audio, text, index)
    sim_padded, index = forward(audio_padded, text_padded)
    assert torch.equal(sim, sim_padded)
    padded_gradients = backward(grad, audio_padded, text_padded, index)
    # Not bitwise equal: the number of parts that are summed depends on the padded length.
    for value, position, target in zip(padded_gradients, (frames, tokens), packed_gradients, strict=True):
        assert_close(value[position.to(value.device)], target, GRADIENT_ERROR[dtype])
    embeddings = [x.rows.view(x.num_sequences, x.longest, 16).nan_to_num() for x in (audio_padded, text_padded)]
    masks = [x.mask.view(x.num_sequences, x.longest) for x in (audio_padded, text_padded)]
    wanted_sim, *wanted = expected(*embeddings, *masks, grad)
    assert_close(sim, wanted_sim, 2e-6)
    for value, target in zip(padded_gradients, wanted, strict=True):
        assert_close(value, target, GRADIENT_ERROR[dtype])


@needs_gpu_or_interpreter
@pytest.mark.parametrize(("L_t", "dtype"), [(150, DTYPES[0]), *((7, dtype) for dtype in DTYPES[1:])])
def test_pairs_are_the_diagonal(L_t, dtype):
    audio, text, audio_mask, text_mask = inputs(5, 5, 70, L_t, 24, dtype)
    packed = from_padded(audio, audio_mask), from_padded(text, text_mask)
    grad = gradient(5)
    sim, index = forward(*packed, pairs=True)
    assert index.dim() == 1
    wanted_sim, *wanted = expected(audio, text, audio_mask, text_mask, grad.diag())
    assert_close(sim, wanted_sim.diag(), 2e-6)
    gradients = backward(grad, *packed, index, pairs=True)
    for value, target in zip(gradients, wanted, strict=True):
        assert_close(value, target, GRADIENT_ERROR[dtype])
    assert_equal(backward(grad, *packed, None, pairs=True, sparse=True), gradients)


@needs_gpu_or_interpreter
@pytest.mark.parametrize(("sparse", "dtype"), [(False, DTYPES[0]), *((True, dtype) for dtype in DTYPES[1:])])
def test_recomputed_winners_give_bitwise_equal_gradients(sparse, dtype):
    audio, text = ragged(CLIPS, 16, dtype), ragged(SHORT, 16, dtype)
    grad = gradient(len(CLIPS), len(SHORT), zeros=0.8)
    saved = backward(grad, audio, text, forward(audio, text)[1], sparse=sparse)
    for index_bytes in (1, 2**26):  # one tile at a time, a whole class at a time
        assert_equal(backward(grad, audio, text, None, sparse=sparse, index_bytes=index_bytes), saved)


@needs_gpu_or_interpreter
def test_the_recompute_workspace_is_bounded():
    from atk.kernels import max_mean

    audio, text = ragged(CLIPS, 8), ragged(CAPTIONS * 4, 8)
    problem = max_mean.Problem(audio, text, False)
    for index_bytes in (1, 1500, 4000):
        for group in problem.groups(index_bytes):
            group_bytes = group.size * len(audio.rows) * index_dtype(text.longest).itemsize
            assert group_bytes <= index_bytes or group.size == group.length_class.captions
    assert len(problem.groups(1)) > len(problem.groups(1500)) > len(problem.groups(2**26)) == 5


@needs_gpu_or_interpreter
@pytest.mark.parametrize(("zeros", "dtype"), [(0.0, DTYPES[0]), (1.0, DTYPES[0]), *((0.9, dtype) for dtype in DTYPES)])
def test_sparse_equals_dense(zeros, dtype):
    audio, text, audio_mask, text_mask = inputs(4, 12, 20, 9, 16, dtype)
    packed = from_padded(audio, audio_mask), from_padded(text, text_mask)
    grad = gradient(4, 12, zeros=zeros)
    index = forward(*packed)[1]
    _, *wanted = expected(audio, text, audio_mask, text_mask, grad)
    dense, sparse = (backward(grad, *packed, index, sparse=sparse) for sparse in (False, True))
    for value, dense_value, target in zip(sparse, dense, wanted, strict=True):
        assert_close(value, target, GRADIENT_ERROR[dtype])
        assert_close(value, dense_value, 1e-6 if dtype == torch.float32 else GRADIENT_ERROR[dtype])


@needs_gpu_or_interpreter
def test_captions_are_ordered_by_class_in_whole_tiles():
    from atk.kernels.pack import pack

    text = ragged(CAPTIONS, 32)
    packed = empty_packed(text.rows, len(CAPTIONS), False, text.rows, len(CAPTIONS), text.longest, False, False)
    _, captions, _ = pack(text, text, False, packed, fill=True)
    slots = captions.slots.view(SLOT_FIELDS.value, len(CAPTIONS)).tolist()
    caption, length = slots[SLOT_CAPTION.value], slots[SLOT_LENGTH.value]
    first_row, num_rows = slots[SLOT_FIRST_ROW.value], slots[SLOT_NUM_ROWS.value]
    assert [CAPTIONS[j] for j in caption] == length
    classes = captions.classes
    bounds = captions.bounds[: len(classes) + 1].tolist()
    assert [length_class.tokens for length_class in classes] == [8, 16, 32, 64, 64] and bounds[-1] == len(CAPTIONS)
    for length_class in classes:
        tokens = length_class.tokens
        members = range(bounds[length_class.index], bounds[length_class.index + 1])
        assert caption[members.start : members.stop] == sorted(caption[members.start : members.stop])
        assert first_row[members.start] % 64 == 0 and len(members) <= length_class.bound
        for slot in members:
            shortest = tokens + 1 if length_class.chunked else tokens // 2 + 1 if length_class.index else 0
            assert length[slot] >= shortest and (length_class.chunked or length[slot] <= tokens)
            end = first_row[slot] + length[slot]
            begin = text.cu_seqlens[caption[slot]]
            assert torch.equal(captions.rows[first_row[slot] : end], text.rows[begin : begin + length[slot]])
            padding = captions.rows[end : first_row[slot] + num_rows[slot]]
            assert (padding == (text.rows[begin] if length[slot] else 0)).all() and num_rows[slot] % tokens == 0
    used = -(-(first_row[-1] + num_rows[-1]) // 64) * 64
    assert used <= len(captions.rows)
    assert (captions.rows[:used][captions.source_row[:used] == -1] == 0).all()
    belongs = sum(num_rows)
    assert (captions.source_row[:used] == -1).sum() == used - belongs + num_rows[length.index(0)]


@needs_gpu_or_interpreter
@pytest.mark.parametrize(("clips", "captions", "pairs"), [(3, 40, False), (40, 3, False), (33, 33, True)])
def test_programs_that_share_the_plan_write_the_tables_of_a_single_one(clips, captions, pairs, monkeypatch):
    from atk.kernels import pack

    generator = torch.Generator().manual_seed(clips + captions)
    audio = ragged(torch.randint(0, 200, (clips,), generator=generator).tolist(), 8)
    text = ragged(torch.randint(0, 100, (captions,), generator=generator).tolist(), 8)
    tables = []
    for block in (1024, 16):
        monkeypatch.setattr(pack, "PLAN_BLOCK", block)
        packed = empty_packed(audio.rows, clips, False, text.rows, captions, text.longest, False, pairs)
        for buffer in packed:
            buffer.zero_()
        pack.pack(audio, text, pairs, packed, fill=True)
        tables.append(packed.tables)
    assert torch.equal(*tables)


@needs_gpu_or_interpreter
def test_equal_lengths_make_one_class():
    from atk.kernels.pack import length_classes

    (single,) = length_classes(5, 100, 20, False, 128, False)
    assert (single.tokens, single.bound, single.tile_bound) == (32, 5, 2)
    assert [length_class.tokens for length_class in length_classes(5, 100, 20, True, 128, False)] == [8, 16, 32]
    assert [length_class.tokens for length_class in length_classes(5, 100, 20, False, 128, True)] == [128]


@needs_gpu_or_interpreter
def test_more_than_two_to_the_31_rows_are_rejected():
    from atk.kernels.pack import pack

    audio = ragged([3], 1)
    text = audio._replace(rows=torch.empty(1, 1, device="meta").expand(2**30, 1))
    with pytest.raises(ValueError, match=r"text has too many tokens for the triton backend: \d+ packed rows"):
        pack(audio, text, False, None, fill=True)
