"""Losses over the pairs of all ranks: on two and four processes of this machine, and on a single process."""

import pytest
import torch
from support.distributed_ranks import CASES, failures

import atk
from atk import distributed


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch has no gloo")
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("case", CASES)
def test_ranks(size, case):
    messages = failures(size)[case]
    assert not messages, messages


@pytest.fixture(params=[False, True], ids=["no group", "group of one"])
def one_rank(request):
    if request.param:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    if request.param:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("gather", ["all", "ring", None])
def test_one_process_computes_the_local_losses(gather):
    frames, tokens, mask = torch.randn(4, 6, 8), torch.randn(4, 3, 8), torch.rand(4, 6) < 0.8
    vectors = frames.mean(1), tokens.mean(1)
    assert torch.equal(distributed.info_nce(*vectors, 5.0, gather=gather), atk.info_nce(*vectors, 5.0))
    options = {"reduction": "mean", "normalize": True, "direction": "both", "skip_below": 0.1}
    loss = distributed.aligned_info_nce(frames, tokens, 5.0, mask, gather=gather, **options)
    assert torch.equal(loss, atk.aligned_info_nce(frames, tokens, 5.0, mask, **options))
    assert torch.equal(
        distributed.sigmoid_loss(*vectors, 5.0, -2.0, gather=gather), atk.sigmoid_loss(*vectors, 5.0, -2.0)
    )
    del options["reduction"]
    loss = distributed.aligned_sigmoid_loss(frames, tokens, 5.0, -2.0, mask, gather=gather, **options)
    assert torch.equal(loss, atk.aligned_sigmoid_loss(frames, tokens, 5.0, -2.0, mask, **options))
    for module in (atk.nn.InfoNCELoss, atk.nn.SigmoidLoss, atk.nn.AlignedContrastiveLoss):
        inputs = (*vectors, frames, tokens, mask) if module is atk.nn.AlignedContrastiveLoss else vectors
        assert torch.equal(module(gather=gather)(*inputs), module()(*inputs))


@pytest.mark.usefixtures("one_rank")
def test_one_process_gathers_its_own_rows():
    rows, cu_seqlens = torch.randn(5, 3), torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    assert distributed.gather(rows) == (rows, slice(0, 5))
    gathered, cu_gathered, local = distributed.gather_packed(rows, cu_seqlens)
    assert gathered is rows and torch.equal(cu_gathered, cu_seqlens) and local == slice(0, 3)
    assert distributed.ddp_factor() == 1
    assert torch.equal(distributed.total(rows), rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distributed.info_nce(torch.randn(2, 3), torch.randn(2, 3), 1.0, gather="some"), "gather must be one"),
        (
            lambda: distributed.sigmoid_loss(torch.randn(2, 3), torch.randn(2, 3), 1.0, 0.0, gather="some"),
            "gather must be one",
        ),
        (lambda: atk.nn.SigmoidLoss(gather="some"), "gather must be one of 'all', 'ring', got 'some'"),
        (lambda: atk.nn.InfoNCELoss(gather="some"), "gather must be one of 'all', 'ring', got 'some'"),
        (lambda: atk.nn.AlignedContrastiveLoss(gather="some"), "gather must be one of 'all', 'ring', got 'some'"),
        (lambda: distributed.gather(torch.randn(3)), r"rows must have shape \[N, D\], got \[3\]"),
        (
            lambda: distributed.gather_packed(torch.randn(3, 2), torch.tensor([0, 4], dtype=torch.int32)),
            "cu_seqlens_text must run from 0 to the 3 rows of text, got 0 to 4",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
