"""Checks of the sigmoid losses that run on each of K ranks; `distributed_ranks` starts them."""

from functools import partial

import torch
from support.distributed_cases import COUNTS, assert_close, check_sum_over_ranks, local_slice, pairs, trimmed

import atk
from atk import distributed

CASES = {}
OPTIONS = [{}, {"normalize": True, "direction": "both"}, {"normalize": True, "skip_below": 0.3}]


def case(function):
    CASES[function.__name__] = function
    return function


def with_bias(loss, *inputs):
    """`loss` with a bias that is a function of the scale, so that the gradient of the scale covers both."""
    *vectors, scale = inputs
    return loss(*vectors, scale, 1 - scale)


@case
def sigmoid_losses_add_up(rank, size):
    for counts in COUNTS[size]:
        vectors = torch.randn(2, sum(counts), 8, dtype=torch.float64)
        whole = partial(with_bias, partial(atk.sigmoid_loss, backend="reference"))
        for gather in distributed.GATHERS:
            for backend in ("reference", "chunked"):
                share = partial(distributed.sigmoid_loss, gather=gather, backend=backend)
                check_sum_over_ranks(whole, partial(with_bias, share), vectors, counts, rank)


@case
def aligned_sigmoid_losses_add_up(rank, size):
    for counts in COUNTS[size]:
        frames, tokens, *masks = pairs(sum(counts))
        part = local_slice(counts, rank)
        for gather in distributed.GATHERS:
            for options in OPTIONS:

                def share(frames, tokens, scale, part=part, masks=masks, gather=gather, options=options):
                    local = [trimmed(value, mask[part]) for value, mask in zip((frames, tokens), masks, strict=True)]
                    (frames, tokens), local_masks = zip(*local, strict=True)
                    inputs = frames, tokens, scale, 1 - scale, *local_masks
                    return distributed.aligned_sigmoid_loss(*inputs, gather=gather, **options)

                def whole(frames, tokens, scale, masks=masks, options=options):
                    return atk.aligned_sigmoid_loss(frames, tokens, scale, 1 - scale, *masks, **options)

                check_sum_over_ranks(whole, share, (frames, tokens), counts, rank)


@case
def sigmoid_modules_learn_scale_and_bias(rank, size):
    counts = COUNTS[size][1]  # a rank without pairs
    vectors = torch.randn(2, sum(counts), 8, dtype=torch.float64)
    part = local_slice(counts, rank)
    for gather in distributed.GATHERS:
        results = {}
        for name, chosen in ((gather, part), (None, slice(None))):
            loss = atk.nn.SigmoidLoss(gather=name).double()
            value = loss(*(x[chosen] for x in vectors))
            value.backward()
            results[name] = value.detach(), loss.log_logit_scale.grad, loss.logit_bias.grad
        for one, whole in zip(results[gather], results[None], strict=True):
            assert_close(distributed.total(one), whole)


@case
def a_rank_without_pairs_or_gradients_joins_the_collectives_of_the_sigmoid_loss(rank, size):
    counts = COUNTS[size][1]
    part = local_slice(counts, rank)
    vectors = torch.randn(2, sum(counts), 8, dtype=torch.float64)
    for gather in distributed.GATHERS:
        for trained in ((True, False), (False, True)):
            local = [x[part].clone() for x in vectors]
            for value, on in zip(local, trained, strict=True):
                value.requires_grad_(on and counts[rank] > 0)
            distributed.sigmoid_loss(*local, 5.0, -2.0, gather=gather).backward()
            every = [x.clone().requires_grad_() for x in vectors]
            atk.sigmoid_loss(*every, 5.0, -2.0).backward()
            for one, all_of, on in zip(local, every, trained, strict=True):
                if on and counts[rank]:
                    assert_close(one.grad, all_of.grad[part])
