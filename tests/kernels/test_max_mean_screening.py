"""int8 screening in the C++ forward: the winners are those of float32 scores for any data."""

import math

import pytest
import torch
from support.cpp_launch import launch, packed, padded, random_mask, same, threads, winners_of  # noqa: F401

from atk import _C
from atk.kernels import cpp

SCREENING_ISAS = ("avx512_bf16", "avx512_vnni", "avx2_vnni", "neon_bf16", "neon_dot")
ISAS = [isa for isa in _C.available_isas() if isa in SCREENING_ISAS]
if not ISAS:
    pytest.skip("screening needs a CPU with AVX-512 VNNI, AVX-VNNI, or NEON dot products", allow_module_level=True)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True, params=ISAS)
def isa(request):
    torch.manual_seed(0)
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(_C.available_isas()[0])
    _C.set_screening("auto")


def forward(mode, audio, text, audio_mask=None, text_mask=None):
    """sim and index [N_a, N_t, L_a], positions in the caption (-1 for padded frames and empty captions)."""
    _C.set_screening(mode)
    (n_a, l_a), (n_t, l_t) = audio.shape[:2], text.shape[:2]
    audio, text = padded(audio, audio_mask), padded(text, text_mask)
    sim, index = torch.full((n_a, n_t), float("nan")), torch.zeros(n_t, n_a * l_a, dtype=torch.uint8)
    cpp.max_mean_forward(audio, text, sim, index, False)
    index = winners_of(audio, text, index, False).view(n_t, n_a, l_a).transpose(0, 1)
    return sim, torch.where(index < 0, -1, index % l_t)


def check(audio, text, audio_mask=None, text_mask=None, mode="always"):
    """Every winner is a maximum up to the float32 rounding of a score, and the first of bitwise equal tokens."""
    sim, index = forward(mode, audio, text, audio_mask, text_mask)
    d = audio.shape[2]
    frames = torch.ones(audio.shape[:2], dtype=torch.bool) if audio_mask is None else audio_mask
    tokens = torch.ones(text.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
    audio, text = audio.double().masked_fill(~frames[..., None], 0), text.double().masked_fill(~tokens[..., None], 0)
    scores = torch.einsum("atd,bld->abtl", audio, text).masked_fill(~tokens[None, :, None], -math.inf)
    # up to D roundings in each of the two scores compared
    rounding = 2 * d * 2**-24 * torch.einsum("at,b->abt", audio.norm(dim=-1), text.norm(dim=-1).amax(1))
    valid = frames[:, None] & tokens.any(1)[None, :, None]
    winning = scores.gather(3, index.clamp(min=0).long()[..., None])[..., 0]
    assert (scores.amax(3) - winning)[valid].le(rounding[valid]).all()
    gap = scores.topk(2, dim=3).values.diff(dim=3)[..., 0].neg() if text.shape[1] > 1 else torch.full(valid.shape, 1.0)
    clear = valid & (gap > rounding)
    assert torch.equal(index[clear].long(), scores.argmax(3)[clear])
    equal = (text[:, :, None] == text[:, None]).all(-1) & tokens[:, :, None] & tokens[:, None]
    first = equal.int().argmax(2)  # the first token equal to each token
    representative = first[None].expand(len(audio), -1, -1).gather(2, index.clamp(min=0).long())
    assert torch.equal(index[valid].long(), representative[valid])
    count = frames.sum(1).clamp(min=1)[:, None]
    truth = scores.amax(3).masked_fill(~valid, 0).sum(2) / count
    assert ((sim - truth).abs() <= (2 * rounding).masked_fill(~valid, 0).sum(2) / count).all()
    return sim, index


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 3, 16, 37, 128, 500])
def test_random(d, dtype):
    for l_a, l_t in ((1, 1), (16, 2), (33, 12), (70, 13), (250, 40)):
        check(torch.randn(3, l_a, d).to(dtype), torch.randn(4, l_t, d).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged(dtype):
    audio, text = torch.randn(5, 120, 64).to(dtype), torch.randn(6, 30, 64).to(dtype)
    audio_mask, text_mask = random_mask(5, 120), random_mask(6, 30)
    audio_mask[2], text_mask[4] = False, False
    audio[~audio_mask], text[~text_mask] = float("nan"), float("inf")
    sim, _ = check(audio, text, audio_mask, text_mask)
    assert sim[2].eq(0).all() and sim[:, 4].eq(0).all()


def test_unit_vectors():
    normalize = torch.nn.functional.normalize
    check(normalize(torch.randn(4, 250, 128), dim=-1), normalize(torch.randn(4, 32, 128), dim=-1))


@pytest.mark.parametrize("l_t", [12, 64, 65, 200])  # up to 64 tokens are compared pairwise
def test_many_tokens(l_t):
    check(torch.randn(2, 100, 48), torch.randn(3, l_t, 48))


def test_integers_give_exact_winners():
    audio, text = torch.randint(-2, 3, (4, 200, 60)).float(), torch.randint(-2, 3, (5, 40, 60)).float()
    sim, index = forward("always", audio, text)
    scores = torch.einsum("atd,bld->abtl", audio, text)
    assert torch.equal(index.long(), scores.argmax(3))  # ties are frequent; the first token wins
    torch.testing.assert_close(sim, scores.amax(3).mean(2))


def test_equal_tokens_tie():
    audio, text = torch.randn(3, 100, 96), torch.randn(4, 5, 96).repeat(1, 6, 1)
    index = check(audio, text)[1]
    assert index.max() < 5


@pytest.mark.parametrize("step", [2**-23, 1e-6, 1e-5, 1e-4, 1e-3])
def test_near_ties(step):
    text = torch.randn(4, 6, 96).repeat_interleave(5, dim=1)
    check(torch.randn(3, 100, 96), text * (1 + step * torch.randint(-2, 3, text.shape)))


@pytest.mark.parametrize("cosine", [0.5, 0.9, 0.999, 0.999999])
def test_clustered(cosine):
    def cluster(n, length):
        return cosine**0.5 * torch.randn(n, 1, 80) + (1 - cosine) ** 0.5 * torch.randn(n, length, 80)

    check(cluster(4, 100), cluster(4, 32))


@pytest.mark.parametrize("factor", [1e2, 1e6])
def test_one_huge_component(factor):
    for huge_audio, huge_text in ((1, factor), (factor, 1), (factor, factor)):
        audio, text = torch.randn(3, 100, 80), torch.randn(4, 32, 80)
        audio[..., 3] *= huge_audio
        text[..., 7 if huge_audio == 1 else 3] *= huge_text
        check(audio, text)


@pytest.mark.parametrize("audio_scale", [1e-18, 1e-11, 1e14, 1e15])
@pytest.mark.parametrize("text_scale", [1e-18, 1e-11, 1e14, 1e15])
def test_scales(audio_scale, text_scale):
    check(audio_scale * torch.randn(2, 70, 64), text_scale * torch.randn(3, 32, 64))


def test_frames_of_very_different_sizes():
    check(torch.randn(3, 100, 64) * 10 ** (12 * torch.rand(3, 100, 1) - 6), torch.randn(4, 32, 64))


def test_rounding_of_frames_at_its_worst():
    """Rounding raises the loser and lowers the winner by the maximum, half a quantum in every component."""
    audio, text = torch.zeros(1, 20, 64), torch.zeros(1, 12, 64)
    audio[..., 0] = 127  # the quantum is 1
    audio[..., 1:32], audio[..., 32:61] = 0.49, 0.51
    text[:, ::2, 32:63], text[:, 1::2, 1:32] = 1, 1
    assert check(audio, text)[1].eq(1).all()


@pytest.mark.parametrize("repeats", [1, 11])  # up to 64 tokens are compared pairwise
def test_rounding_of_tokens_at_its_worst(repeats):
    audio, text = torch.zeros(1, 20, 64), torch.zeros(1, 6, 64)
    audio[..., 1:] = 1
    text[:, 0, 1:60], text[:, 1, 1:], text[:, 2, 0] = 0.51, 0.49, 127
    text[:, 3:] = -text[:, :3]  # their mean is 0
    assert check(audio, text.repeat(1, repeats, 1))[1].eq(1).all()


def test_scores_that_tie_only_after_rounding():
    audio, text = torch.full((1, 20, 1), 1.5), torch.tensor([12000002.0, 12000003.0]).view(1, 2, 1)
    assert 1.5 * text[0, 0, 0] == 1.5 * text[0, 1, 0]
    assert forward("always", audio, text)[1].eq(0).all()


def test_zero_rows():
    audio, text = torch.randn(4, 100, 64), torch.randn(5, 32, 64)
    audio[0, ::3], audio[1], text[0, ::4], text[1], text[2, :] = 0, 0, 0, 0, text[2, :1].clone()
    sim, index = check(audio, text)
    assert index[1].eq(0).all() and sim[1].eq(0).all() and index[:, 1:3].eq(0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_non_finite_values_take_the_direct_path(value):
    for poisoned in ("audio", "text"):
        audio, text = torch.randn(3, 70, 20), torch.randn(4, 20, 20)
        audio[2, 4, 5] = text[2, 7, 5] = 0  # 0 * infinity: a NaN among infinite scores
        (audio if poisoned == "audio" else text)[1, 13, 5] = value
        for got, want in zip(forward("always", audio, text), forward("never", audio, text), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)


def mixed(n):
    """Clips and captions that mode "auto" treats differently: some are easy to screen, others are not."""
    audio, text = torch.randn(n, 200, 64), torch.randn(n, 32, 64)
    text[::3], audio[1, ::2] = text[::3, :2].repeat(1, 16, 1), 0
    text[4::5, :, 3] *= 300
    return audio, text


def test_auto_mode():
    audio, text = mixed(20)
    sim, _ = check(audio, text, mode="auto")
    direct, _ = forward("never", audio, text)
    assert not torch.equal(sim, direct)  # screened blocks sum in a different order


@pytest.mark.parametrize("mode", ["auto", "always"])
@pytest.mark.parametrize("n_a", [1, 2, 20])
def test_results_do_not_depend_on_threads(n_a, mode, threads):  # noqa: F811
    audio, text = mixed(40)
    audio = audio[:n_a].repeat(1, 6, 1)
    threads(1)
    single_threaded = forward(mode, audio, text)
    for count in (2, 3, 16):
        threads(count)
        for a, b in zip(forward(mode, audio, text), single_threaded, strict=True):
            assert torch.equal(a, b)


def near_ties(n_t, frames):
    """Frames, and captions of which 40% repeat two tokens that screening cannot separate.

    Each token also occurs with its halves swapped, and the two halves of a frame are equal. Which of the two tokens
    wins depends on the rounding of the score, and therefore on whether the frame was screened.
    """
    token = torch.randn(n_t, 16, 64)
    repeated = torch.rand(n_t) < 0.4
    token[repeated] = token[repeated, :1]
    return torch.randn(frames, 32).repeat(1, 2), torch.cat([token, token.roll(32, dims=2)], 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep", [0.02, *(pytest.param(keep, marks=pytest.mark.slow) for keep in (0.1, 0.5)), 1.0])
@pytest.mark.parametrize("mode", ["auto", "always"])
def test_recomputed_winners_are_those_of_the_forward(dtype, keep, mode, threads):  # noqa: F811
    """Neither workspace groups nor pairs without gradient change what is screened; `launch` compares the bits."""
    _C.set_screening(mode)
    lengths = [200, 801, 37, 0, 120]  # 801: two chunks
    rows, text = near_ties(45, sum(lengths))
    audio, text = packed(rows.to(dtype), lengths), padded(text.to(dtype), random_mask(45, 32, keep=0.95))
    grad = torch.randn(5, 45) * random_mask(5, 45, keep=keep)
    for count, captions in ((1, 1), (1, 7), (3, 20)):
        threads(count)
        launch(audio, text, grad, workspace=captions * sum(lengths))


@pytest.mark.parametrize("dtype", DTYPES)
def test_captions_do_not_depend_on_their_neighbors(dtype):
    rows, text = near_ties(48, 1800)
    audio, text = rows.view(6, 300, 64).to(dtype), text.to(dtype)
    kept = torch.rand(48) < 0.5
    others = torch.where(kept[:, None, None], text, text.flip(0))
    for got, want in zip(forward("auto", audio, others), forward("auto", audio, text), strict=True):
        assert torch.equal(got[:, kept], want[:, kept])


def test_near_ties_depend_on_what_is_screened():
    """Otherwise the two tests above would prove nothing."""
    rows, text = near_ties(48, 1800)
    winners = [forward(mode, rows.view(6, 300, 64), text)[1] for mode in ("auto", "always", "never")]
    assert not torch.equal(winners[0], winners[1]) and not torch.equal(winners[0], winners[2])


def test_pairs_are_not_screened():
    audio, text = padded(torch.randn(9, 200, 64)), padded(torch.randn(9, 32, 64))
    results = []
    for mode in ("always", "never"):
        _C.set_screening(mode)
        results.append(launch(audio, text, pairs=True))
    for a, b in zip(*results, strict=True):
        same(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_equals_padded_with_a_mask(dtype):
    audio, text = torch.randn(6, 400, 64).to(dtype), torch.randn(20, 32, 64).to(dtype)
    audio_lengths, text_lengths = torch.tensor([400, 33, 0, 390, 250, 64]), torch.randint(0, 33, (20,))
    audio_mask, text_mask = (torch.arange(n) < x[:, None] for n, x in ((400, audio_lengths), (32, text_lengths)))
    grad = torch.randn(6, 20)
    with_mask = launch(padded(audio, audio_mask), padded(text, text_mask), grad)
    without_padding = launch(
        packed(audio[audio_mask], audio_lengths.tolist()), packed(text[text_mask], text_lengths.tolist()), grad
    )
    same(without_padding[0], with_mask[0])
    same(without_padding[2], with_mask[2][audio_mask.view(-1)])
    same(without_padding[3], with_mask[3][text_mask.view(-1)])


def test_longest_captions_are_not_screened():
    lengths = [4096, 4097, 20]
    audio, text = padded(torch.randn(32, 1, 64)), packed(torch.randn(sum(lengths), 64), lengths)
    sims = []
    for mode in ("always", "never"):
        _C.set_screening(mode)
        sims.append(launch(audio, text)[0])
    assert torch.equal(sims[0][:, 1], sims[1][:, 1]) and not torch.equal(sims[0][:, 0], sims[1][:, 0])


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_bfloat16_is_screened_unless_pairs_of_channels_multiply_at_once(mode, isa):
    audio, text = torch.randn(8, 200, 64).bfloat16(), torch.randn(8, 32, 64).bfloat16()
    unscreened = forward(mode, audio, text)[0].equal(forward("never", audio, text)[0])
    assert unscreened == isa.endswith("_bf16")  # screened blocks sum in a different order


def test_unknown_mode():
    with pytest.raises(ValueError, match="must be 'auto', 'always', or 'never', got 'sometimes'"):
        _C.set_screening("sometimes")
