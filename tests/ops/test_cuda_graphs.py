"""Forward and backward of every op, captured in a CUDA graph and replayed with other inputs."""

import pytest
import torch

from atk.ops.backend import BACKENDS
from atk.ops.self_check_problems import problems


def inputs(op, shift, dtype):
    """Inputs of the op's problems on the GPU, their clips and captions rotated by `shift`."""
    for problem in problems(op):
        values = {}
        for name, exact in problem.inputs.items():
            value = exact.roll(shift, 0) if exact.dim() else exact + shift
            if value.is_floating_point():
                value = value.to(torch.float32 if name in problem.wide else dtype)
            values[name] = value.cuda().requires_grad_(name in problem.leaves)
        yield values


def step(op, inputs):
    """Values and gradients of the op's problems."""
    results = []
    for problem, values in zip(problems(op), inputs, strict=True):
        outputs = [output.float() for output in problem.function(**values, backend="triton").values()]
        gradients = torch.autograd.grad(sum(x.square().sum() for x in outputs), [values[k] for k in problem.leaves])
        results += [x.detach() for x in outputs] + list(gradients)
    return results


@pytest.mark.gpu
@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", BACKENDS)
def test_a_replay_equals_a_call(op, dtype):
    captured = list(inputs(op, 0, dtype))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(op, captured)  # compiles the kernels, and lets cuBLAS and autograd allocate what they keep
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(op, captured)
    for shift in (1, 2):
        fresh = list(inputs(op, shift, dtype))
        for old, new in zip(captured, fresh, strict=True):
            for name, value in old.items():
                value.detach().copy_(new[name])
        graph.replay()
        torch.testing.assert_close(results, step(op, fresh), rtol=0, atol=0, equal_nan=True)
