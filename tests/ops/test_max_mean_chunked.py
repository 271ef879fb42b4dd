"""The `"chunked"` backend of max-mean similarity where it differs from the others: tiles, float64, and any device.

`test_max_mean.py` and its neighbors run it with all other backends.
"""

import sys

import pytest
import torch
from support.peak_memory import peak_growth
from support.public_cases import gradients, ragged
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import atk
from atk.ops import max_mean_chunked
from atk.ops.backend import choose


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of at most 8 tokens and 40 scores, so that every clip of 9 frames is cut."""
    monkeypatch.setattr(max_mean_chunked, "TILE_TOKENS", 8)
    monkeypatch.setattr(max_mean_chunked, "TILE_SCORES", 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["audio", "text", "both"])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.usefixtures("small_tiles")
def test_tiles_add_up_to_the_reference(dtype, direction, pairs):
    audio, text, audio_mask, text_mask = ragged(clips=9, captions=9, dtype=dtype)
    function = atk.max_mean_similarity_pairs if pairs else atk.max_mean_similarity

    def op(backend, save_index=None):
        options = {"direction": direction, "save_index": save_index, "backend": backend}
        return lambda a, t: function(a, t, audio_mask, text_mask, **options)

    wanted = gradients(op("reference"), audio.double(), text.double())
    got = gradients(op("chunked", save_index=True), audio, text)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for value, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(value.double(), want, rtol=tolerance, atol=tolerance)
    assert got[0].dtype == torch.promote_types(dtype, torch.float32) and got[1].dtype == dtype
    assert all(map(torch.equal, got, gradients(op("chunked", save_index=False), audio, text)))


@pytest.mark.parametrize("pairs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradcheck(pairs):
    audio, text, audio_mask, text_mask = ragged(captions=4, dtype=torch.float64)
    function = atk.max_mean_similarity_pairs if pairs else atk.max_mean_similarity
    assert torch.autograd.gradcheck(
        lambda a, t: function(a, t, audio_mask, text_mask, direction="both", normalize=True),
        (audio.requires_grad_(), text.requires_grad_()),
    )


class _LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@pytest.mark.parametrize("save_index", [False, True])
@pytest.mark.usefixtures("small_tiles")
def test_no_tensor_exceeds_the_tiles_the_inputs_and_the_winners(save_index):
    audio, text = torch.randn(6, 50, 3, dtype=torch.float64), torch.randn(7, 8, 3, dtype=torch.float64)
    with _LargestTensor() as largest:
        gradients(lambda a, t: atk.max_mean_similarity(a, t, save_index=save_index), audio, text)
    assert largest.elements <= (7 * 6 * 50 if save_index else audio.numel()) < 6 * 7 * 50 * 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_it_serves_every_device(dtype):
    meta = torch.device("meta")
    assert choose("auto", meta, dtype) == "chunked"
    audio = torch.empty(3, 5, 4, dtype=dtype, device=meta, requires_grad=True)
    text = torch.empty(2, 6, 4, dtype=dtype, device=meta, requires_grad=True)
    sim = atk.max_mean_similarity(audio, text, torch.ones(3, 5, dtype=torch.bool, device=meta))
    assert sim.shape == (3, 2) and sim.device == meta and sim.dtype == torch.promote_types(dtype, torch.float32)
    for value, grad in zip((audio, text), torch.autograd.grad(sim.sum(), (audio, text)), strict=True):
        assert grad.shape == value.shape and grad.dtype == dtype and grad.device == meta


_STEP = """
def step(pairs):
    audio, text = (torch.randn(pairs, n, 128, dtype=torch.float64, requires_grad=True) for n in (250, 32))
    atk.max_mean_similarity(audio, text, backend=sys.argv[2]).sum().backward()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_in_float64():
    # The scores of all frames and tokens take 1,049 MB; the embeddings and their gradients take 74 MB.
    assert peak_growth(_STEP, 128, "auto") < 200
