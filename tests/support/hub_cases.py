"""Calls of the ops, for `atk` and for copies of it that are loaded as kernels from the Hugging Face hub."""

import torch


def losses(module, backend):
    """A loss of each op, and the gradients of its inputs."""
    torch.manual_seed(1)
    frames, tokens = torch.randn(3, 20, 32, requires_grad=True), torch.randn(3, 6, 32, requires_grad=True)
    masks = torch.rand(3, 20) < 0.8, torch.rand(3, 6) < 0.8
    vectors = frames.mean(1), tokens.mean(1)
    attention = frames, frames, tokens, tokens, torch.eye(32)
    values = (
        module.aligned_info_nce(frames, tokens, 5.0, *masks, normalize=True, backend=backend),
        module.info_nce(*vectors, 5.0, backend=backend),
        module.sigmoid_loss(*vectors, 5.0, -2.0, backend=backend),
        module.cross_attention_difference(
            *attention, num_heads=2, backend="auto" if backend == "chunked" else backend
        ).std(),
    )
    return [*values, *torch.autograd.grad(sum(values), (frames, tokens))]
