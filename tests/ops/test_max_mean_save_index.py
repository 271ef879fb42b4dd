"""`save_index` of max-mean similarity: results and memory with saved and with recomputed winning tokens.

Without a GPU, the Triton cases run in Triton's interpreter, started by `tests/kernels/test_interpreter.py`.
"""

import sys

import pytest
import torch
from support.peak_memory import peak_growth
from support.public_cases import BACKENDS, cpp_runs, gradients, ragged

import atk
from atk.ops import max_mean_op


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pairs", [False, True])
def test_recomputed_winners_give_the_same_gradients_bit_for_bit(backend, pairs, monkeypatch):
    audio, text, audio_mask, text_mask = ragged(captions=4)
    function = atk.max_mean_similarity_pairs if pairs else atk.max_mean_similarity

    def op(save_index):
        return lambda a, t: function(a, t, audio_mask, text_mask, save_index=save_index, backend=backend)

    saved, recomputed = gradients(op(True), audio, text), gradients(op(False), audio, text)
    assert all(map(torch.equal, saved, recomputed))
    assert all(map(torch.equal, saved, gradients(op(True), audio, text)))  # and a repeated run agrees
    monkeypatch.setattr(max_mean_op, "INDEX_BUDGET", 0)
    assert all(map(torch.equal, saved, gradients(op(None), audio, text)))


@cpp_runs
def test_the_budget_decides_what_is_saved(monkeypatch):
    audio, text = torch.randn(3, 10, 4, requires_grad=True), torch.randn(2, 300, 4)
    needed = 3 * 10 * 2 * 2  # entries of two bytes, because L_t > 256
    for budget, saved in ((needed, needed // 2), (needed - 1, 0)):
        monkeypatch.setattr(max_mean_op, "INDEX_BUDGET", budget)
        sim = atk.max_mean_similarity(audio, text, backend="cpp")
        index = [value for value in sim.grad_fn.saved_tensors if value is not None and value.dtype == torch.int16]
        assert sum(value.numel() for value in index) == saved


_STEP = """
def step(pairs):
    audio, text = torch.randn(pairs, 250, 8, requires_grad=True), torch.randn(pairs, 4, 8, requires_grad=True)
    atk.max_mean_similarity(audio, text, backend="cpp", save_index=sys.argv[2] == "save").sum().backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
@cpp_runs
def test_recomputation_needs_no_memory_per_pair_and_frame():
    # 1,024 * 1,024 * 250 winners take 262 MB, the workspace of the recomputation 67 MB, and the rest below 80 MB.
    assert peak_growth(_STEP, 1024, "recompute") < 150 < 250 < peak_growth(_STEP, 1024, "save")
