"""How many kernels a call of max-mean similarity launches: small batches take no longer than their launches."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from support.triton_cases import needs_compiler
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from atk.kernels import launch, max_mean
from atk.kernels.sequences import empty_packed, from_padded, index_columns

pytestmark = needs_compiler
NO_LAUNCH = ("empty", "view", "reshape", "select", "slice", "split", "detach", "alias")


class Launches(TorchDispatchMode):
    """Names of the PyTorch operations that launch something on a GPU, and of the Triton kernels."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names = []
        monkeypatch.setattr(JITFunction, "run", lambda kernel, *_, **__: self.names.append(kernel.__name__))

    def __torch_dispatch__(self, function, _, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not any(part in name for part in NO_LAUNCH):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("masks", "most_forward", "most_backward"), [(False, 7, 4), (True, 9, 9)])
def test_a_call_launches_few_kernels(masks, most_forward, most_backward, monkeypatch):
    hopper = launch.Device((9, 0), 132)
    monkeypatch.setattr(launch.Device, "of", lambda _: hopper)
    N, L_a, L_t, D = 32, 250, 32, 128
    audio, text = (torch.zeros(N, length, D, dtype=torch.bfloat16) for length in (L_a, L_t))
    audio_mask, text_mask = (torch.ones(N, length).bool() if masks else None for length in (L_a, L_t))
    with Launches(monkeypatch) as forward:
        clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
        packed = empty_packed(clips.rows, N, masks, captions.rows, N, L_t, masks, False)
        index = torch.empty(N, index_columns(N * L_a, N, L_a, masks), dtype=torch.uint8)
        max_mean.max_mean_forward(clips, captions, torch.empty(N, N), index, False, packed)
    gradients = torch.empty_like(clips.rows), torch.empty_like(captions.rows)
    with Launches(monkeypatch) as backward:
        max_mean.max_mean_backward(torch.empty(N, N), clips, captions, index, *gradients, False, False, packed)
    assert len(forward.names) <= most_forward, forward.names
    assert len(backward.names) <= most_backward, backward.names
    assert sum("grad" in name for name in backward.names) == 2 * sum(name == "forward_kernel" for name in forward.names)
