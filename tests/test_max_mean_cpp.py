"""The C++ launchers against float64 NumPy, on every instruction set that this CPU runs.

Most inputs are small integers: exact in every dtype, so the scores are exact, ties are many, and the winning tokens
must agree one by one.
"""

import multiprocessing

import numpy as np
import pytest
import torch

from atk.kernels import cpp

if cpp.unavailable():
    pytest.skip(cpp.unavailable(), allow_module_level=True)
from atk import _C

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True, params=_C.available_isas())
def isa(request):
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(_C.available_isas()[0])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def valid_positions(rows, mask):
    return [np.flatnonzero(row) for row in (np.ones(rows.shape[:2]) if mask is None else mask)]


def expected(audio, text, audio_mask, text_mask, grad):
    """sim, index (-1 where there is no winner), grad_audio, grad_text in float64, pair by pair."""
    audio, text, grad = (x.double().numpy() for x in (audio, text, grad))
    frames, tokens = valid_positions(audio, audio_mask), valid_positions(text, text_mask)
    sim, index = np.zeros(grad.shape), np.full((*grad.shape, audio.shape[1]), -1)
    grad_audio, grad_text = np.zeros(audio.shape), np.zeros(text.shape)
    for i, j in np.ndindex(*grad.shape):
        t, valid = frames[i], tokens[j]
        if not len(t) or not len(valid):
            continue
        with np.errstate(invalid="ignore"):
            scores = audio[i, t] @ text[j, valid].T
            winner = scores.argmax(1)  # the first of equals, and the first NaN before any number
            sim[i, j] = scores[np.arange(len(t)), winner].mean()
            index[i, j, t] = valid[winner]
            weight = grad[i, j] / len(t)
            grad_audio[i, t] += weight * text[j, valid[winner]]
            np.add.at(grad_text[j], valid[winner], weight * audio[i, t])
    return [torch.from_numpy(x) for x in (sim, index, grad_audio, grad_text)]


def launch(audio, text, audio_mask=None, text_mask=None, grad=None):
    """Both launchers with every output poisoned; an index of 255 or more reads far outside a short caption."""
    n_a, n_t, l_t = len(audio), len(text), text.shape[1]
    dtype = torch.uint8 if l_t <= 256 else torch.int16 if l_t <= 32768 else torch.int32
    index = torch.full((n_a, n_t, audio.shape[1]), torch.iinfo(dtype).max, dtype=dtype)
    sim = torch.full((n_a, n_t), NAN)
    cpp.max_mean_forward(audio, text, audio_mask, text_mask, sim, index)
    without_index = torch.full((n_a, n_t), NAN)
    cpp.max_mean_forward(audio, text, audio_mask, text_mask, without_index, None)
    torch.testing.assert_close(without_index, sim, rtol=0, atol=0, equal_nan=True)
    grad_audio, grad_text = torch.full_like(audio, NAN), torch.full_like(text, NAN)
    grad = torch.ones_like(sim) if grad is None else grad
    cpp.max_mean_backward(grad, audio, text, audio_mask, text_mask, index, grad_audio, grad_text)
    return sim, index, grad_audio, grad_text


def check(audio, text, audio_mask=None, text_mask=None):
    grad = torch.randn(len(audio), len(text))
    got = launch(audio, text, audio_mask, text_mask, grad)
    want = expected(audio, text, audio_mask, text_mask, grad)
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=1e-6, equal_nan=True)
    has_winner = want[1] >= 0
    assert torch.equal(got[1][has_winner].long(), want[1][has_winner])
    for gradient, truth in zip(got[2:], want[2:], strict=True):
        assert gradient.dtype == audio.dtype
        finite = truth[truth.isfinite()].abs()
        atol = 1e-5 * finite.max().item() if finite.numel() else 0
        torch.testing.assert_close(
            gradient.double(), truth, rtol=torch.finfo(audio.dtype).eps, atol=atol, equal_nan=True
        )


def integers(*shape, dtype=torch.float32, low=-2, high=3):
    return torch.randint(low, high, shape).to(dtype)


def holes(*shape, keep=0.7):
    return torch.rand(shape) < keep


def random_size(rng, largest):
    return round(float(largest ** rng.random()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_shapes(dtype):
    rng = np.random.default_rng(0)
    for _ in range(25):
        l_a, l_t, d = random_size(rng, 2000), random_size(rng, 300), random_size(rng, 1024)
        n_a, n_t = rng.integers(1, 6, size=2)
        masks = holes(n_a, l_a) if rng.random() < 0.5 else None, holes(n_t, l_t) if rng.random() < 0.5 else None
        check(integers(n_a, l_a, d, dtype=dtype), integers(n_t, l_t, d, dtype=dtype), *masks)


@pytest.mark.parametrize(
    "n_a, n_t, l_a, l_t, d",
    [(2, 2, 2000, 5, 16), (2, 3, 150, 300, 1024), (1, 40, 33, 12, 24), (40, 1, 17, 13, 7)],
    ids=["long clips", "wide embeddings", "one clip", "one caption"],
)
def test_named_shapes(n_a, n_t, l_a, l_t, d):
    check(integers(n_a, l_a, d), integers(n_t, l_t, d), holes(n_a, l_a), holes(n_t, l_t))


def test_every_tile():
    for l_t in range(1, 27):
        check(integers(2, 3 * l_t, 5), integers(2, l_t, 5))


def test_more_captions_than_fit_the_cache():
    check(integers(2, 5, 1024), integers(100, 40, 1024), None, holes(100, 40))


@pytest.mark.parametrize("l_t, dtype", [(256, torch.uint8), (257, torch.int16), (32769, torch.int32)])
def test_index_types(l_t, dtype):
    text = integers(1, l_t, 2, low=-1, high=0)
    text[0, -1] = 1
    audio = integers(1, 40, 2, low=1, high=2)
    assert launch(audio, text)[1].dtype == dtype
    assert (launch(audio, text)[1] == l_t - 1).all()
    check(audio, text)


def test_first_of_equal_tokens_wins():
    audio, text = torch.ones(2, 70, 9), torch.ones(3, 40, 9)
    assert (launch(audio, text)[1] == 0).all()
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[:, :7] = False
    assert (launch(audio, text, None, mask)[1] == 7).all()


def test_signed_zeros_tie():
    text = torch.zeros(1, 3, 1)
    text[0, 0] = -0.0
    assert (launch(torch.ones(1, 20, 1), text)[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_padding_is_never_read(dtype, poison):
    audio, text = integers(3, 90, 33, dtype=dtype), integers(4, 29, 33, dtype=dtype)
    audio_mask, text_mask = holes(3, 90), holes(4, 29)
    clean = launch(audio, text, audio_mask, text_mask)
    audio[~audio_mask], text[~text_mask] = poison, poison
    check(audio, text, audio_mask, text_mask)
    for a, b in zip(launch(audio, text, audio_mask, text_mask), clean, strict=True):
        assert torch.equal(a, b)
    assert clean[2][~audio_mask].eq(0).all() and clean[3][~text_mask].eq(0).all()


def test_empty_clips_and_captions():
    audio_mask, text_mask = holes(4, 50), holes(5, 20)
    audio_mask[1], text_mask[3] = False, False
    audio, text = integers(4, 50, 8), integers(5, 20, 8)
    audio[1], text[3] = NAN, NAN
    check(audio, text, audio_mask, text_mask)
    sim, _, grad_audio, grad_text = launch(audio, text, audio_mask, text_mask)
    assert sim[1].eq(0).all() and sim[:, 3].eq(0).all()
    assert grad_audio[1].eq(0).all() and grad_text[3].eq(0).all()
    nothing = torch.zeros(5, 20, dtype=torch.bool)
    for result in launch(audio, text, audio_mask, nothing)[::2]:
        assert result.eq(0).all()


def test_all_scores_minus_infinity():
    audio, text = torch.full((2, 40, 1), -INF), integers(3, 20, 1, low=1, high=3)
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[:, :4] = False
    sim, index, _, _ = launch(audio, text, None, mask)
    assert sim.eq(-INF).all() and index.eq(4).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_values_propagate(dtype, value):
    for d in (1, 20):
        for place in range(26):
            audio, text = integers(2, 37, d, dtype=dtype), integers(2, 26, d, dtype=dtype)
            text[1, place, 0] = value
            check(audio, text)
            audio[0, place, 0] = value
            check(audio, text)


def test_overflow():
    big = torch.finfo(torch.float32).max
    audio = torch.tensor([[[big, 1.0], [big, big], [1.0, 1.0]]])
    text = torch.tensor([[[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]]])
    sim, index, _, _ = launch(audio, text)
    assert index.tolist() == [[[1, 0, 2]]] and sim.eq(INF).all()  # the first infinity wins


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_threads(dtype, threads):
    audio, text = torch.randn(13, 300, 48).to(dtype), torch.randn(11, 20, 48).to(dtype)
    args = audio, text, holes(13, 300), holes(11, 20), torch.randn(13, 11)
    threads(1)
    alone = launch(*args)
    for count in (1, 2, 5, 32):
        threads(count)
        for a, b in zip(launch(*args), alone, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_accurate_as_eager_float32(dtype):
    audio, text = torch.randn(5, 200, 512).to(dtype), torch.randn(6, 30, 512).to(dtype)
    truth = expected(audio, text, None, None, torch.ones(5, 6))[0]
    eager = torch.einsum("atd,bld->abtl", audio.float(), text.float()).amax(-1).mean(-1)
    error = (launch(audio, text)[0] - truth).abs().max()
    assert error <= 4 * (eager - truth).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_types_convert_exactly(dtype):
    values = torch.arange(65536).to(torch.uint16).view(dtype).reshape(-1, 1, 1)
    one = torch.ones(1, 1, 1, dtype=dtype)
    sim = launch(values, one)[0]
    torch.testing.assert_close(sim, values.float().view(-1, 1), rtol=0, atol=0, equal_nan=True)
    exact = values.float().view(-1, 1)
    halfway = torch.cat([exact, (exact + exact.roll(1, 0)) / 2, exact * (1 + 2**-12), torch.randn(4096, 1) * 1e-6])
    grad_audio = launch(torch.ones(len(halfway), 1, 1, dtype=dtype), one, grad=halfway)[2]
    torch.testing.assert_close(grad_audio.view(-1, 1), halfway.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_works_after_fork(threads):
    threads(2)
    audio, text, sim = integers(8, 200, 64), integers(8, 30, 64), torch.empty(2, 8, 8)
    cpp.max_mean_forward(audio, text, None, None, sim[0], None)
    sim.share_memory_()

    def child():  # nothing but the launcher: torch's own threads do not survive a fork
        cpp.max_mean_forward(audio, text, None, None, sim[1], None)

    process = multiprocessing.get_context("fork").Process(target=child, daemon=True)
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0
    assert torch.equal(sim[0], sim[1])


def test_instruction_sets_can_be_forced(isa):
    assert _C.isa() == isa
    with pytest.raises(ValueError, match=r"'neon512' is not available here; available: .*portable"):
        _C.set_isa("neon512")
