"""Other libraries in tests: importing them, inputs with every kind of mask, and proof that our ops ran."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from atk.integrations.rebinding import import_library

TORCHVISION_OPS = (
    "nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
    "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip
DECLARED = []


class OpCounter(TorchDispatchMode):
    """Counts the calls of our custom ops."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func.namespace == "atk"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def our_ops_run(expected=True):
    """Fails unless at least one of our ops runs in the context, or none if not `expected`."""
    with OpCounter() as counter:
        yield
    assert (counter.calls > 0) == expected


def library(module, *, needs=()):
    """Import a module of another library, or skip the test."""
    for package in needs:
        pytest.importorskip(package)
    declare_torchvision_ops()
    try:
        return import_library(module)
    except ImportError as error:
        pytest.skip(f"{module} cannot be imported: {str(error).splitlines()[0]}")


def declare_torchvision_ops():
    """Let a torchvision that was built for another torch be imported: its ops only need to be declared."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        declared = torch.library.Library("torchvision", "DEF")
        for name in TORCHVISION_OPS:
            declared.define(f"{name}() -> ()")
        DECLARED.append(declared)


def embeddings(*shape, mask=None, dtype=torch.float64):
    """Unit vectors, all near one half-space, so that many best similarities are negative; padding holds garbage."""
    rows = F.normalize(torch.randn(*shape, dtype=dtype) + 0.5, dim=-1)
    rows = rows if mask is None else torch.where(mask[..., None], rows, 100.0 * rows)
    return rows.requires_grad_()


def ragged(*shape):
    """A boolean mask with holes; the last row is empty, the one before it has a single valid position."""
    mask = torch.rand(*shape) < 0.7
    mask[..., 0, :] = True
    mask.view(-1, shape[-1])[-1] = False
    mask.view(-1, shape[-1])[-2] = torch.arange(shape[-1]) == 1
    return mask


def gradients(score, leaves):
    """The output of `score()`, and the gradients of the leaves for a random but repeatable incoming gradient."""
    output = score()
    weight = torch.rand(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [output.detach(), *torch.autograd.grad((output * weight).sum(), leaves)]


def assert_all_close(actual, expected, **tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
