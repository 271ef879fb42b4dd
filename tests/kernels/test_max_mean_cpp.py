"""The C++ launchers on padded batches against float64 NumPy, on every instruction set that this CPU supports.

Most inputs are small integers. They are exact in every dtype, so scores are exact, ties are frequent, and every winning
token must agree.
"""

import numpy as np
import pytest
import torch
from support.cpp_launch import (  # noqa: F401
    DTYPES,
    INF,
    NAN,
    check,
    expected,
    integers,
    isa,
    launch,
    padded,
    random_mask,
    same,
    widest_isa_is_quick,
)

from atk import _C


def random_size(rng, largest):
    return round(float(largest ** rng.random()))


@widest_isa_is_quick
@pytest.mark.parametrize("dtype", DTYPES)
def test_random_shapes(dtype):
    rng = np.random.default_rng(0)
    for _ in range(25):
        l_a, l_t, d = random_size(rng, 2000), random_size(rng, 300), random_size(rng, 1024)
        n_a, n_t = rng.integers(1, 6, size=2)
        audio_mask = random_mask(n_a, l_a) if rng.random() < 0.5 else None
        text_mask = random_mask(n_t, l_t) if rng.random() < 0.5 else None
        check(
            padded(integers(n_a, l_a, d, dtype=dtype), audio_mask),
            padded(integers(n_t, l_t, d, dtype=dtype), text_mask),
        )


@pytest.mark.parametrize(
    ("n_a", "n_t", "l_a", "l_t", "d"),
    [(2, 2, 2000, 5, 16), (2, 3, 150, 300, 1024), (1, 40, 33, 12, 24), (40, 1, 17, 13, 7)],
    ids=["long clips", "wide embeddings", "one clip", "one caption"],
)
def test_named_shapes(n_a, n_t, l_a, l_t, d):
    check(padded(integers(n_a, l_a, d), random_mask(n_a, l_a)), padded(integers(n_t, l_t, d), random_mask(n_t, l_t)))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_every_tile(dtype):
    for l_t in range(1, 27):
        check(padded(integers(2, 3 * l_t, 5, dtype=dtype)), padded(integers(2, l_t, 5, dtype=dtype)))


@widest_isa_is_quick
def test_more_captions_than_fit_the_cache():
    check(padded(integers(2, 5, 1024)), padded(integers(100, 40, 1024), random_mask(100, 40)))


@pytest.mark.parametrize("l_t", [256, 257, 32769], ids=["uint8", "int16", "int32"])
def test_index_types(l_t):
    text = integers(1, l_t, 2, low=-1, high=0)
    text[0, -1] = 1
    audio = integers(1, 40, 2, low=1, high=2)
    assert (launch(padded(audio), padded(text))[1] == l_t - 1).all()
    check(padded(audio), padded(text))


def test_first_of_equal_tokens_wins():
    audio, text = torch.ones(2, 70, 9), torch.ones(3, 40, 9)
    first = torch.tensor([[0], [40], [80]])
    assert (launch(padded(audio), padded(text))[1] == first).all()
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[:, :7] = False
    assert (launch(padded(audio), padded(text, mask))[1] == first + 7).all()


def test_signed_zeros_tie():
    text = torch.zeros(1, 3, 1)
    text[0, 0] = -0.0
    assert (launch(padded(torch.ones(1, 20, 1)), padded(text))[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [NAN, INF, -INF])
def test_padding_is_never_read(dtype, poison):
    audio, text = integers(3, 90, 33, dtype=dtype), integers(4, 29, 33, dtype=dtype)
    audio_mask, text_mask = random_mask(3, 90), random_mask(4, 29)
    clean = launch(padded(audio, audio_mask), padded(text, text_mask))
    assert clean[2][~audio_mask.view(-1)].eq(0).all() and clean[3][~text_mask.view(-1)].eq(0).all()
    audio[~audio_mask], text[~text_mask] = poison, poison
    check(padded(audio, audio_mask), padded(text, text_mask))
    for a, b in zip(launch(padded(audio, audio_mask), padded(text, text_mask)), clean, strict=True):
        assert torch.equal(a, b)


def test_empty_clips_and_captions():
    audio_mask, text_mask = random_mask(4, 50), random_mask(5, 20)
    audio_mask[1], text_mask[3] = False, False
    audio, text = integers(4, 50, 8), integers(5, 20, 8)
    audio[1], text[3] = NAN, NAN
    check(padded(audio, audio_mask), padded(text, text_mask))
    sim, _, grad_audio, grad_text = launch(padded(audio, audio_mask), padded(text, text_mask))
    assert sim[1].eq(0).all() and sim[:, 3].eq(0).all()
    assert grad_audio[50:100].eq(0).all() and grad_text[60:80].eq(0).all()
    nothing = torch.zeros(5, 20, dtype=torch.bool)
    for result in launch(padded(audio, audio_mask), padded(text, nothing))[::2]:
        assert result.eq(0).all()


def test_all_scores_minus_infinity():
    audio, text = torch.full((2, 40, 1), -INF), integers(1, 20, 1, low=1, high=3)
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[:, :4] = False
    sim, winners, _, _ = launch(padded(audio), padded(text, mask))
    assert sim.eq(-INF).all() and winners.eq(4).all()


@widest_isa_is_quick
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_values_propagate(dtype, value):
    for d in (1, 20):
        for place in range(26):
            audio, text = integers(2, 37, d, dtype=dtype), integers(2, 26, d, dtype=dtype)
            text[1, place, 0] = value
            check(padded(audio), padded(text))
            audio[0, place, 0] = value
            check(padded(audio), padded(text))


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_overflow(dtype):
    big = torch.finfo(dtype).max
    audio = torch.tensor([[[big, 1.0], [big, big], [1.0, 1.0]]], dtype=dtype)
    text = torch.tensor([[[1.0, 1.0], [2.0, 0.0], [3.0, 0.0]]], dtype=dtype)
    sim, winners, _, _ = launch(padded(audio), padded(text))
    assert winners.tolist() == [[1, 0, 2]] and sim.eq(INF).all()  # the first infinity wins


@widest_isa_is_quick
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_accurate_as_eager_float32(dtype):
    audio, text = torch.randn(5, 200, 512).to(dtype), torch.randn(6, 30, 512).to(dtype)
    truth = expected(padded(audio), padded(text), torch.zeros(5, 6))[0]
    eager = torch.einsum("atd,bld->abtl", audio.float(), text.float()).amax(-1).mean(-1)
    error = (launch(padded(audio), padded(text))[0] - truth).abs().max()
    assert error <= 4 * (eager - truth).abs().max() + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_types_convert_exactly(dtype):
    values = torch.arange(65536).to(torch.uint16).view(dtype).reshape(-1, 1, 1)
    one = padded(torch.ones(1, 1, 1, dtype=dtype))
    sim = launch(padded(values), one)[0]
    same(sim, values.float().view(-1, 1))
    exact = values.float().view(-1, 1)
    halfway = torch.cat([exact, (exact + exact.roll(1, 0)) / 2, exact * (1 + 2**-12), torch.randn(4096, 1) * 1e-6])
    halfway = halfway[halfway.ne(0).squeeze()]
    grad_audio = launch(padded(torch.ones(len(halfway), 1, 1, dtype=dtype)), one, grad=halfway)[2]
    same(grad_audio, halfway.to(dtype))


def test_instruction_sets_can_be_forced(isa):  # noqa: F811
    assert _C.isa() == isa
    with pytest.raises(ValueError, match=rf"'neon512' is not available here; available: .*{isa}"):
        _C.set_isa("neon512")


@pytest.mark.parametrize("exponent", [-126, -100, -64, -50, -40])
def test_bfloat16_rows_of_any_scale(exponent):
    """A chunk holds both normal and tiny frames, and no scores are flushed to zero."""
    audio, text = torch.randn(1, 40, 33), torch.randn(1, 26, 33)
    audio[0, ::2] *= 2.0**exponent
    text[0, 3] *= 2.0 ** (exponent / 2)
    audio, text = audio.bfloat16(), text.bfloat16()
    scores = (audio[0].double() @ text[0].double().T) / audio[0].double().norm(dim=1, keepdim=True)
    winners = launch(padded(audio), padded(text))[1][0]
    lost = scores.max(1).values - scores.gather(1, winners[:, None])[:, 0]
    assert lost.max() < 1e-5
