"""Checks of the losses that run on each of K ranks; `distributed_ranks` starts them.

All ranks run the same collectives, so a case compares its results only after the last of them.
"""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import atk
from atk import distributed

COUNTS = {2: [[3, 2], [4, 0]], 4: [[2, 1, 3, 2], [3, 0, 1, 0]]}  # pairs of each rank
CASES = {}
assert_close = partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)


def case(function):
    CASES[function.__name__] = function
    return function


def local_slice(counts, rank):
    """The pairs of one rank among those of all ranks."""
    return slice(sum(counts[:rank]), sum(counts[: rank + 1]))


def pairs(count, dtype=torch.float64, width=8):
    """Clips and captions of random lengths, with masks that have holes and NaN at masked positions.

    The last caption has no token.
    """
    frames, tokens = (torch.randn(count, length, width, dtype=dtype) for length in (7, 5))
    frame_mask, token_mask = (torch.rand(count, length) < 0.7 for length in (7, 5))
    frame_mask[:, 0] = True
    token_mask[:, 1] = True
    token_mask[-1] = False
    frames[~frame_mask], tokens[~token_mask] = torch.nan, torch.nan
    return frames, tokens, frame_mask, token_mask


def trimmed(value, mask):
    """Sequences without padding beyond the longest one, as each rank pads its own."""
    length = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1
    return value[:, :length], mask[:, :length]


def value_and_gradients(loss, inputs, scale):
    """The value of `loss(*inputs, scale)` and its gradients."""
    leaves = [value.clone().requires_grad_() for value in (*inputs, scale)]
    value = loss(*leaves)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def check_sum_over_ranks(global_loss, rank_loss, inputs, counts, rank, close=assert_close, scale=5.0):
    """Checks that the losses and gradients of all ranks add up to those of the whole batch on one process."""
    part = local_slice(counts, rank)
    scale = torch.tensor(scale, dtype=inputs[0].dtype)
    value, *grads, grad_scale = value_and_gradients(rank_loss, [x[part] for x in inputs], scale)
    value, grad_scale = distributed.total(value), distributed.total(grad_scale)
    wanted, *wanted_grads, wanted_scale = value_and_gradients(global_loss, inputs, scale)
    close(value, wanted.to(value.dtype))
    close(grad_scale, wanted_scale.to(grad_scale.dtype))
    for grad, all_grads in zip(grads, wanted_grads, strict=True):
        close(grad, all_grads[part].to(grad.dtype))
    assert wanted_scale.abs() > 1e-3 and all(x.nan_to_num().abs().sum() > 1e-3 for x in wanted_grads)


def info_nce_case(gather, reduction, backend, rank, size):
    for counts in COUNTS[size]:
        inputs = torch.randn(2, sum(counts), 8, dtype=torch.float64)
        options = {"reduction": reduction, "backend": backend}
        whole = partial(atk.info_nce, reduction=reduction, backend="reference")
        check_sum_over_ranks(whole, partial(distributed.info_nce, gather=gather, **options), inputs, counts, rank)


def aligned_case(gather, rank, size, masked=True, **options):
    for counts in COUNTS[size]:
        frames, tokens, *masks = pairs(sum(counts))
        if not masked:
            frames, tokens = torch.randn_like(frames), torch.randn_like(tokens)
        part = local_slice(counts, rank)

        def share(frames, tokens, scale, part=part, masks=masks):
            if not masked:
                return distributed.aligned_info_nce(frames, tokens, scale, gather=gather, **options)
            local = [trimmed(value, mask[part]) for value, mask in zip((frames, tokens), masks, strict=True)]
            values, masks = zip(*local, strict=True)
            return distributed.aligned_info_nce(*values, scale, *masks, gather=gather, **options)

        def whole(frames, tokens, scale, masks=masks):
            return atk.aligned_info_nce(frames, tokens, scale, *(masks if masked else ()), **options)

        check_sum_over_ranks(whole, share, (frames, tokens), counts, rank)


for _gather in distributed.GATHERS:
    for _reduction, _backend in (("sum", "reference"), ("mean", "chunked"), ("sum", "chunked")):
        CASES[f"info_nce {_gather} {_reduction} {_backend}"] = partial(info_nce_case, _gather, _reduction, _backend)
    for _direction, _normalize in product(("audio", "text", "both"), (False, True)):
        _options = {"direction": _direction, "normalize": _normalize}
        CASES[f"aligned {_gather} {_direction} {_normalize}"] = partial(aligned_case, _gather, **_options)
    CASES[f"aligned {_gather} without masks"] = partial(aligned_case, _gather, masked=False, reduction="mean")
    CASES[f"aligned {_gather} skips"] = partial(aligned_case, _gather, skip_below=0.3, normalize=True)


@case
def modules_learn_the_temperature(rank, size):
    for counts, gather in product(COUNTS[size], distributed.GATHERS):
        globals_ = torch.randn(2, sum(counts), 8, dtype=torch.float64)
        frames, tokens, *masks = pairs(sum(counts))
        part = local_slice(counts, rank)
        results = {}
        for name, chosen in ((gather, part), (None, slice(None))):
            loss = atk.nn.AlignedContrastiveLoss(0.2, True, global_weight=0.5, gather=name).double()
            inputs = [x[chosen].clone().requires_grad_() for x in (*globals_, frames, tokens)]
            value = loss(*inputs, *(mask[chosen] for mask in masks))
            value.backward()
            results[name] = value.detach(), loss.log_logit_scale.grad, [x.grad for x in inputs]
        (value, grad, grads), (whole, whole_grad, whole_grads) = results[gather], results[None]
        value, grad = distributed.total(value), distributed.total(grad)
        assert_close(value, whole)
        assert_close(grad, whole_grad)
        for one, every in zip(grads, whole_grads, strict=True):
            assert_close(one, every[part])


@case
def float32_agrees_up_to_rounding(rank, size):
    close = partial(torch.testing.assert_close, rtol=2e-5, atol=2e-6)
    for counts, gather in product(COUNTS[size], distributed.GATHERS):
        vectors = torch.randn(2, sum(counts), 8)
        check_sum_over_ranks(atk.info_nce, partial(distributed.info_nce, gather=gather), vectors, counts, rank, close)
        frames, tokens = (x.nan_to_num() for x in pairs(sum(counts), torch.float32)[:2])
        share = partial(distributed.aligned_info_nce, gather=gather)
        check_sum_over_ranks(atk.aligned_info_nce, share, (frames, tokens), counts, rank, close)


@case
def bfloat16_under_autocast(rank, size):
    close = partial(torch.testing.assert_close, rtol=2e-2, atol=2e-3)
    for counts, gather, dtype in product(COUNTS[size], distributed.GATHERS, (torch.float32, torch.bfloat16)):
        frames, tokens = (x.nan_to_num().to(dtype) for x in pairs(sum(counts), torch.float32)[:2])

        def autocast(function, frames, tokens, scale):
            with torch.autocast("cpu", torch.bfloat16):
                return function(frames, tokens, scale.float(), normalize=True)

        whole, share = atk.aligned_info_nce, partial(distributed.aligned_info_nce, gather=gather)
        check_sum_over_ranks(*(partial(autocast, x) for x in (whole, share)), (frames, tokens), counts, rank, close)


@case
def the_ring_recomputes_under_the_same_autocast(rank, size):
    seen, similarity = [], distributed.exchange.similarity

    def spy(*args, **kwargs):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return similarity(*args, **kwargs)

    frames, tokens = (torch.randn(2, length, 4, requires_grad=True) for length in (5, 3))
    distributed.exchange.similarity = spy
    try:
        with torch.autocast("cpu", torch.float16):
            share = distributed.aligned_info_nce(frames, tokens, 5.0, gather="ring")
        share.backward()
    finally:
        distributed.exchange.similarity = similarity
    assert seen == [torch.float16] * 2 * size


@case
def two_runs_give_the_same_bits(rank, size):
    counts = COUNTS[size][0]
    part = local_slice(counts, rank)
    vectors = [x[part] for x in torch.randn(2, sum(counts), 8)]
    sequences = [x[part].nan_to_num() for x in pairs(sum(counts), torch.float32)[:2]]
    for gather in distributed.GATHERS:
        for loss, inputs in ((distributed.info_nce, vectors), (distributed.aligned_info_nce, sequences)):
            first, second = (
                value_and_gradients(partial(loss, gather=gather), inputs, torch.tensor(5.0)) for _ in range(2)
            )
            assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@case
def a_rank_without_pairs_or_gradients_joins_the_collectives(rank, size):
    counts = COUNTS[size][1]
    part = local_slice(counts, rank)
    for gather in distributed.GATHERS:
        vectors = torch.randn(2, sum(counts), 8, dtype=torch.float64)
        frames, tokens = (x.nan_to_num() for x in pairs(sum(counts))[:2])
        for share, whole, inputs in (
            (distributed.info_nce, atk.info_nce, vectors),
            (distributed.aligned_info_nce, atk.aligned_info_nce, (frames, tokens)),
        ):
            for trained in ((True, True), (True, False), (False, True)):
                local = [x[part].clone() for x in inputs]
                for value, on in zip(local, trained, strict=True):
                    value.requires_grad_(on and counts[rank] > 0)
                share(*local, 5.0, gather=gather).backward()
                every = [x.clone().requires_grad_() for x in inputs]
                whole(*every, 5.0).backward()
                for one, all_of, on in zip(local, every, trained, strict=True):
                    if on and counts[rank]:
                        assert_close(one.grad, all_of.grad[part])


@case
def gradients_averaged_by_ddp_are_those_of_the_whole_batch(rank, size):
    class Towers(nn.Module):
        def __init__(self, gather):
            super().__init__()
            self.audio, self.text = nn.Linear(8, 6), nn.Linear(8, 6)
            self.loss = atk.nn.AlignedContrastiveLoss(learnable=True, gather=gather)

        def forward(self, frames, tokens):
            frames, tokens = self.audio(frames), self.text(tokens)
            return self.loss(frames.mean(1), tokens.mean(1), frames, tokens)

    for counts, gather in product(COUNTS[size], distributed.GATHERS):
        part = local_slice(counts, rank)
        frames, tokens = (x.nan_to_num() for x in pairs(sum(counts))[:2])
        model, whole = Towers(gather).double(), Towers(None).double()
        replica = DistributedDataParallel(model)
        whole.load_state_dict(model.state_dict())
        (replica(frames[part], tokens[part]) * distributed.ddp_factor()).backward()
        whole(frames, tokens).backward()
        for one, every in zip(model.parameters(), whole.parameters(), strict=True):
            assert_close(one.grad, every.grad)


@case
def captions_without_any_token(rank, size):
    for gather in distributed.GATHERS:
        mask = torch.zeros(2, 3, dtype=torch.bool)
        frames, tokens = (torch.randn(2, length, 4).requires_grad_() for length in (5, 3))
        share = distributed.aligned_info_nce(frames, tokens, 5.0, None, mask, gather=gather)
        share.backward()
        whole = distributed.total(share)
        assert_close(whole.item(), 2 * torch.tensor(2.0 * size).log().item(), rtol=1e-6)
        assert not frames.grad.any() and not tokens.grad.any()


@case
def without_gradients_and_without_second_derivatives(rank, size):
    for gather in distributed.GATHERS:
        vectors = torch.randn(2, 2, 8).requires_grad_()
        with torch.no_grad():
            share = distributed.info_nce(*vectors, 5.0, gather=gather)
            assert not share.requires_grad
        share = distributed.info_nce(*vectors, 5.0, gather=gather, backend="reference")
        (grad,) = torch.autograd.grad(share, vectors, create_graph=True)
        with pytest.raises(RuntimeError, match="twice"):
            grad.sum().backward()
