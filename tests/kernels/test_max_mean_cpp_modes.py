"""The C++ launchers on packed batches and pairs, without a saved index, with sparse gradients, on many threads."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from support.cpp_launch import (  # noqa: F401
    DTYPES,
    INF,
    NAN,
    check,
    integers,
    isa,
    launch,
    packed,
    padded,
    random_mask,
    same,
    threads,
    widest_isa_is_quick,
)

from atk.kernels import cpp

AUDIO_LENGTHS, TEXT_LENGTHS = [70, 1, 0, 300, 33, 5], [3, 12, 32, 0, 1, 9]


def ragged(lengths, d, dtype=torch.float32, mask=False):
    rows = integers(sum(lengths), d, dtype=dtype)
    return packed(rows, lengths, random_mask(len(rows)) if mask else None)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairs", [False, True])
def test_ragged_lengths(dtype, mask, pairs):
    for d in (1, 31, 70):
        check(ragged(AUDIO_LENGTHS, d, dtype, mask), ragged(TEXT_LENGTHS, d, dtype, mask), pairs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_equals_padded_with_a_mask(dtype):
    audio, text = torch.randn(4, 90, 48).to(dtype), torch.randn(5, 20, 48).to(dtype)
    audio_mask = torch.arange(90) < torch.tensor([[90], [3], [0], [41]])
    text_mask = torch.arange(20) < torch.tensor([[20], [1], [12], [0], [7]])
    grad = torch.randn(4, 5)
    with_mask = launch(padded(audio, audio_mask), padded(text, text_mask), grad)
    without_padding = launch(
        packed(audio[audio_mask], audio_mask.sum(1).tolist()), packed(text[text_mask], text_mask.sum(1).tolist()), grad
    )
    same(without_padding[0], with_mask[0])
    same(without_padding[2], with_mask[2][audio_mask.view(-1)])
    same(without_padding[3], with_mask[3][text_mask.view(-1)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_does_not_depend_on_the_others(dtype):
    """Short clips share register tiles, and the end of a long one."""
    lengths = [5, 0, 3, 400, 7, 1, 40, 2, 250, 6]
    audio, text = torch.randn(sum(lengths), 300).to(dtype), torch.randn(sum(TEXT_LENGTHS), 300).to(dtype)
    clips = audio.split(lengths)
    clips[2].mul_(2.0**-60)
    clips[5][0, 0] = NAN
    clips[7][1, 2] = INF
    captions, grad = packed(text, TEXT_LENGTHS), torch.randn(len(lengths), len(TEXT_LENGTHS))
    sim, winners, grad_audio, _ = launch(packed(audio, lengths), captions, grad)
    frames = winners.split(lengths, 1), grad_audio.split(lengths)
    for i, clip in enumerate(clips):
        if len(clip) == 0:  # launchers take no batch without rows
            assert sim[i].eq(0).all()
            continue
        alone = launch(packed(clip.clone(), [len(clip)]), captions, grad[i : i + 1])
        same(sim[i], alone[0][0])
        same(frames[0][i], alone[1])
        same(frames[1][i], alone[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pairs_equal_the_diagonal(dtype):
    audio, text = (
        padded(torch.randn(9, 300, 40).to(dtype), random_mask(9, 300)),
        padded(torch.randn(9, 17, 40).to(dtype)),
    )
    grad = torch.randn(9)
    matrix, pairs = launch(audio, text, grad.diag()), launch(audio, text, grad, pairs=True)
    same(pairs[0], matrix[0].diag())
    caption_of_frame = torch.arange(9).repeat_interleave(300)
    assert torch.equal(pairs[1][0], matrix[1][caption_of_frame, torch.arange(2700)])
    same(pairs[2], matrix[2])
    same(pairs[3], matrix[3])


@pytest.mark.parametrize("workspace", [1, 700, 2000, 1 << 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_recomputed_winners_give_the_same_bits(dtype, workspace):
    """13 captions at 470 bytes each, in groups of 1, 1, 4 and 13; `launch` compares the bits."""
    audio = packed(torch.randn(470, 40).to(dtype), [300, 20, 0, 150])
    text = padded(torch.randn(13, 20, 40).to(dtype), random_mask(13, 20))
    launch(audio, text, torch.randn(4, 13), workspace=workspace)
    sparse = torch.randn(4, 13) * random_mask(4, 13, keep=0.2)
    launch(audio, text, sparse, workspace=workspace)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("value", [NAN, INF])
def test_pairs_without_gradient_are_left_out(value, pairs):
    audio, text = ragged(AUDIO_LENGTHS, 33), ragged(TEXT_LENGTHS, 33)
    grad = torch.randn(6) if pairs else torch.randn(6, 6)
    grad[3 if pairs else (3, slice(None))] = 0
    grad[2 if pairs else (slice(None), 2)] = 0
    clean = launch(audio, text, grad, pairs)
    audio.rows[71:371], text.rows[15:47] = value, value
    check(audio, text, pairs, grad)
    poisoned = launch(audio, text, grad, pairs)
    assert torch.equal(poisoned[2], clean[2]) and torch.equal(poisoned[3], clean[3])
    assert clean[2][71:371].eq(0).all() and clean[3][15:47].eq(0).all()


@pytest.mark.parametrize("keep", [0.0, 0.02, 0.3])
def test_sparse_gradients(keep):
    audio, text = padded(integers(20, 30, 40), random_mask(20, 30)), padded(integers(70, 9, 40))
    check(audio, text, grad=torch.randn(20, 70) * random_mask(20, 70, keep=keep))


@widest_isa_is_quick
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("audio_lengths", "text_lengths", "pairs"),
    [
        ([300] * 13, [20] * 11, False),
        ([3000], [12] * 40, False),
        ([400] * 5, [30], False),
        ([2000, 3, 0, 500], [5, 30, 2, 40], True),
    ],
    ids=["batch", "one clip", "one caption", "pairs"],
)
def test_results_do_not_depend_on_threads(dtype, audio_lengths, text_lengths, pairs, threads):  # noqa: F811
    audio = packed(torch.randn(sum(audio_lengths), 100).to(dtype), audio_lengths, random_mask(sum(audio_lengths)))
    text = packed(torch.randn(sum(text_lengths), 100).to(dtype), text_lengths, random_mask(sum(text_lengths)))
    grad = torch.randn(len(text_lengths)) if pairs else torch.randn(len(audio_lengths), len(text_lengths))
    threads(1)
    single_threaded = launch(audio, text, grad, pairs)
    for count in (2, 32):
        threads(count)
        for a, b in zip(launch(audio, text, grad, pairs), single_threaded, strict=True):
            assert torch.equal(a, b)


def test_long_sums_stay_accurate():
    audio, text = padded(torch.rand(1000, 250, 3)), padded(torch.randn(1, 1, 3))
    grad = torch.rand(1000, 1)
    truth = (audio.rows.view(1000, 250, 3).double().mean(1) * grad).sum(0)
    error = launch(audio, text, grad)[3][0] / truth - 1
    assert error.abs().max() < 4e-6


def test_small_calls_keep_the_threads_of_large_ones(threads):  # noqa: F811
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("the system does not list threads")
    threads(4)
    problems = [
        (padded(torch.randn(n, frames, 128)), padded(torch.randn(n, 32, 128)), torch.empty(n, n))
        for n, frames in ((2, 60), (8, 100))  # work for two threads, and for all
    ]
    before = None
    for _ in range(4):
        for audio, text, sim in problems:
            cpp.max_mean_forward(audio, text, sim, None, False)
        before = before or set(tasks.iterdir())
    assert set(tasks.iterdir()) <= before  # threads of earlier tests may end meanwhile


def test_works_after_fork(threads):  # noqa: F811
    threads(2)
    audio, text, sim = padded(integers(8, 200, 64)), padded(integers(8, 30, 64)), torch.empty(2, 8, 8)
    cpp.max_mean_forward(audio, text, sim[0], None, False)
    sim.share_memory_()

    def child():  # only the launcher: torch's threads do not survive a fork
        cpp.max_mean_forward(audio, text, sim[1], None, False)

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0
    assert torch.equal(sim[0], sim[1])


@widest_isa_is_quick
def test_random_packed_batches():
    rng = np.random.default_rng(1)
    for _ in range(40):
        n_a, n_t = rng.integers(1, 9, size=2)
        d = int(rng.integers(1, 140))
        audio = ragged([*rng.integers(0, 600, size=n_a).tolist(), 1], d, mask=rng.random() < 0.5)
        text = ragged([*rng.integers(0, 50, size=n_t).tolist(), 1], d, mask=rng.random() < 0.5)
        check(audio, text)
