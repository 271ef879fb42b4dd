"""Helpers of the C++ launcher tests: launches in every mode with poisoned outputs, and a float64 NumPy reference."""

import itertools

import numpy as np
import pytest
import torch

from atk.kernels import cpp
from atk.kernels.sequences import Sequences, from_padded, index_dtype

if reason := cpp.unavailable():
    pytest.skip(reason, allow_module_level=True)
from atk import _C

NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, params=_C.available_isas())
def isa(request):
    """Run every test of the importing module on each instruction set that this CPU supports."""
    _C.set_isa(request.param)
    yield request.param
    _C.set_isa(_C.available_isas()[0])


_FIRST, *_OTHERS = _C.available_isas()
# For costly tests of what hardly depends on the instruction set: the quick tests run them on the widest one alone.
widest_isa_is_quick = pytest.mark.parametrize(
    "isa", [_FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS)], indirect=True
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def valid_rows(sequences):
    """The indices of the valid rows of each sequence."""
    cu_seqlens = sequences.cu_seqlens.tolist()
    valid = np.ones(cu_seqlens[-1], bool) if sequences.mask is None else sequences.mask.numpy()
    return [np.flatnonzero(valid[begin:end]) + begin for begin, end in itertools.pairwise(cu_seqlens)]


def expected(audio, text, grad, pairs=False):
    """sim, winners [N_t, T_a] (rows of text, -1 if there is none), and both gradients in float64, pair by pair."""
    frames, tokens = valid_rows(audio), valid_rows(text)
    a, t, g = audio.rows.double().numpy(), text.rows.double().numpy(), grad.double().numpy()
    sim, winners = np.zeros(g.shape), np.full((1 if pairs else text.num_sequences, len(a)), -1)
    grad_audio, grad_text = np.zeros(a.shape), np.zeros(t.shape)
    for i in range(audio.num_sequences):
        for j in [i] if pairs else range(text.num_sequences):
            if not len(frames[i]) or not len(tokens[j]):
                continue
            pair = i if pairs else (i, j)
            with np.errstate(invalid="ignore"):
                scores = a[frames[i]] @ t[tokens[j]].T
                best = scores.argmax(1)  # the first maximum; NaN counts as the largest
                sim[pair] = scores[np.arange(len(best)), best].mean()
                winners[0 if pairs else j, frames[i]] = tokens[j][best]
                if g[pair] == 0:
                    continue
                weight = g[pair] / len(best)
                grad_audio[frames[i]] += weight * t[tokens[j][best]]
                np.add.at(grad_text, tokens[j][best], weight * a[frames[i]])
    return [torch.from_numpy(x) for x in (sim, winners, grad_audio, grad_text)]


def launch(audio, text, grad=None, pairs=False, workspace=300):
    """Return sim, winners, grad_audio, and grad_text; check that the modes without a saved index give the same bits."""
    T_a, dtype = len(audio.rows), index_dtype(text.longest)
    index = torch.full((T_a,) if pairs else (text.num_sequences, T_a), torch.iinfo(dtype).max, dtype=dtype)
    shape = (text.num_sequences,) if pairs else (audio.num_sequences, text.num_sequences)
    sim, without_index = torch.full(shape, NAN), torch.full(shape, NAN)
    cpp.max_mean_forward(audio, text, sim, index, pairs)
    cpp.max_mean_forward(audio, text, without_index, None, pairs)
    same(without_index, sim)
    grad = torch.ones(shape) if grad is None else grad
    gradients = []
    before = cpp.WORKSPACE_BYTES
    for saved, cpp.WORKSPACE_BYTES in ((index, before), (None, before), (None, workspace)):
        outputs = torch.full_like(audio.rows, NAN), torch.full_like(text.rows, NAN)
        cpp.max_mean_backward(grad, audio, text, saved, *outputs, pairs, False)
        gradients.append(outputs)
    cpp.WORKSPACE_BYTES = before
    for recomputed in gradients[1:]:
        same(recomputed[0], gradients[0][0])
        same(recomputed[1], gradients[0][1])
    return sim, winners_of(audio, text, index, pairs), *gradients[0]


def winners_of(audio, text, index, pairs):
    """Convert the launchers' `index` to rows of `text` [N_t, T_a], -1 if there is no winner."""
    frames, tokens = valid_rows(audio), valid_rows(text)
    index = index.view(-1, len(audio.rows)).long().numpy()
    winners = np.full(index.shape, -1)
    begin = 0
    for i, rows in enumerate(frames):
        for j in [i] if pairs else range(text.num_sequences):
            if len(tokens[j]) and len(rows):
                caption_row = 0 if pairs else j
                winners[caption_row, rows] = tokens[j][index[caption_row, begin : begin + len(rows)]]
        begin += len(rows)
    return torch.from_numpy(winners)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def check(audio, text, pairs=False, grad=None):
    """Compare a launch with `expected`; the winners must be equal."""
    shape = (text.num_sequences,) if pairs else (audio.num_sequences, text.num_sequences)
    grad = torch.randn(shape) if grad is None else grad
    got, want = launch(audio, text, grad, pairs), expected(audio, text, grad, pairs)
    torch.testing.assert_close(got[0].double(), want[0], rtol=1e-6, atol=1e-6, equal_nan=True)
    assert torch.equal(got[1], want[1])
    for gradient, truth in zip(got[2:], want[2:], strict=True):
        assert gradient.dtype == audio.rows.dtype
        finite = truth[truth.isfinite()].abs()
        atol = 1e-5 * finite.max().item() if finite.numel() else 0
        torch.testing.assert_close(
            gradient.double(), truth, rtol=torch.finfo(gradient.dtype).eps, atol=atol, equal_nan=True
        )


def integers(*shape, dtype=torch.float32, low=-2, high=3):
    return torch.randint(low, high, shape).to(dtype)


def random_mask(*shape, keep=0.7):
    return torch.rand(shape) < keep


def padded(value, mask=None):
    return from_padded(value, mask)


def packed(rows, lengths, mask=None):
    cu_seqlens = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    return Sequences(rows, cu_seqlens, mask, max(lengths))
