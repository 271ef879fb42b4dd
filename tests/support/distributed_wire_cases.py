"""Checks of gathers, groups, errors, and traffic that run on each of K ranks; `distributed_ranks` starts them."""

from functools import partial
from itertools import product

import pytest
import torch
import torch.distributed as dist
from support.distributed_cases import COUNTS, assert_close, local_slice, value_and_gradients

import atk
from atk import distributed
from atk.distributed.collectives import LogSumExp
from atk.distributed.ring import ring

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


@case
def gather_sums_gradients_of_all_ranks(rank, size):
    for counts in COUNTS[size]:
        part = local_slice(counts, rank)
        every = torch.randn(sum(counts), 3, dtype=torch.float64)
        weights = torch.randn(size, sum(counts), 3, dtype=torch.float64)
        rows = every[part].clone().requires_grad_()
        gathered, local = distributed.gather(rows)
        (gathered * weights[rank]).sum().backward()
        assert torch.equal(gathered.detach(), every) and local == part
        assert_close(rows.grad, weights.sum(0)[part])


@case
def gather_of_packed_captions(rank, size):
    counts = COUNTS[size][0]
    lengths = torch.randint(0, 4, (sum(counts),), dtype=torch.int32)
    every, part = torch.randn(int(lengths.sum()), 3).bfloat16(), local_slice(counts, rank)
    rows = every[int(lengths[: part.start].sum()) : int(lengths[: part.stop].sum())].clone().requires_grad_()
    cu_seqlens = torch.tensor([0, *lengths[part].cumsum(0)], dtype=torch.int32)
    gathered, cu_gathered, local = distributed.gather_packed(rows, cu_seqlens)
    weights = torch.randn(size, *every.shape)
    (gathered * weights[rank]).sum().backward()
    wanted = torch.zeros_like(every, dtype=torch.float32)
    for weight in weights.bfloat16():
        wanted += weight
    assert torch.equal(gathered.detach(), every) and local == part and cu_gathered.dtype == torch.int32
    assert cu_gathered.tolist() == [0, *lengths.cumsum(0).tolist()]
    start = int(lengths[: part.start].sum())
    assert rows.grad.dtype == torch.bfloat16
    assert torch.equal(rows.grad, wanted[start : start + len(rows)].bfloat16())  # one rounding of a float32 sum


@case
def ring_sums_gradients_in_float32(rank, size):
    counts = COUNTS[size][0]
    every, part = torch.randn(sum(counts), 3).bfloat16(), local_slice(counts, rank)
    weights, local_weights = torch.randn(size, sum(counts), 3).bfloat16(), torch.randn(size, 3).bfloat16()
    rows, local = every[part].clone().requires_grad_(), torch.zeros(3).bfloat16().requires_grad_()

    def score(source, block, local):
        assert torch.equal(block.detach(), every[local_slice(counts, source)])
        return block * weights[rank, local_slice(counts, source)], local * local_weights[source]

    sum(value.sum() for block in ring(score, rows, (local,), counts, None) for value in block).backward()
    assert torch.equal(rows.grad, weights[:, part].float().sum(0).bfloat16())
    assert torch.equal(local.grad, local_weights.float().sum(0).bfloat16())


@case
def inputs_that_differ_between_ranks_are_refused_on_every_rank(rank, size):
    calls = {
        "text must have the same width D on all ranks": lambda: torch.randn(2, 1, 4 + (rank == 0)),
        "text must have the same dtype on all ranks": lambda: torch.randn(2, 1, 4).to(
            [torch.half, torch.float][rank % 2]
        ),
        "at least one pair on some rank, got 0 on all of them": lambda: torch.randn(2, 0, 4),
    }
    for (message, make), gather in product(calls.items(), distributed.GATHERS):
        with pytest.raises((ValueError, TypeError), match=message):
            distributed.info_nce(*make(), 1.0, gather=gather)
    distributed.info_nce(torch.randn(2, 4), torch.randn(2, 4), 1.0)  # the group still works


@case
def a_group_of_some_ranks(rank, size):
    ranks = list(range(1, size, 2)) if size > 2 else [0, 1]
    group = dist.new_group(ranks)
    if rank not in ranks:
        return
    place = ranks.index(rank)
    assert distributed.ddp_factor(group) == len(ranks)
    for gather in distributed.GATHERS:
        inputs = [torch.randn(len(ranks), 2, length, 4, dtype=torch.float64) for length in (5, 3)]
        share = partial(distributed.aligned_info_nce, gather=gather, group=group)
        scale = torch.tensor(5.0, dtype=torch.float64)
        value, *grads, _ = value_and_gradients(share, [x[place] for x in inputs], scale)
        wanted, *wanted_grads, _ = value_and_gradients(atk.aligned_info_nce, [x.flatten(0, 1) for x in inputs], scale)
        assert_close(distributed.total(value, group), wanted)
        for one, every in zip(grads, wanted_grads, strict=True):
            assert_close(one, every.view(len(ranks), *one.shape)[place])


@case
def logsumexp_of_infinite_and_undefined_values(rank, size):
    table = torch.randn(size, 5)
    table[:, 0], table[0, 1], table[-1, 2], table[-1, 3] = -torch.inf, -torch.inf, torch.inf, torch.nan
    result = LogSumExp.apply(table[rank], None)
    torch.testing.assert_close(result, table.logsumexp(0), equal_nan=True)


class Meter:
    """Counts the bytes of floating-point rows that this rank receives, in total and in the largest message."""

    def __enter__(self):
        self.received = 0
        self.largest = 0
        self.collectives = {}
        for name in ("all_gather", "all_to_all_single", "batch_isend_irecv"):
            self.collectives[name] = getattr(dist, name)
            setattr(dist, name, partial(self.count, name))
        return self

    def count(self, name, *args, **kwargs):
        if name == "batch_isend_irecv":
            received = [op.tensor for op in args[0] if op.op is dist.irecv]
        else:  # the local part is not sent
            received = (args[0] if name == "all_gather" else args[0].chunk(dist.get_world_size()))[1:]
        received = [part.nbytes for part in received if part.is_floating_point()]
        self.received += sum(received)
        self.largest = max(self.largest, *received, 0)
        return self.collectives[name](*args, **kwargs)

    def __exit__(self, *_):
        for name, function in self.collectives.items():
            setattr(dist, name, function)


@case
def traffic_is_as_documented(rank, size):
    count, length, width = 2, 3, 4
    frames, tokens = (torch.randn(count, steps, width, requires_grad=True) for steps in (50, 2 * length))
    mask = torch.arange(2 * length).expand(count, -1) % 2 == 0
    caption_bytes = (size - 1) * count * length * width * 4
    for gather, passes in (("all", 2), ("ring", 3)):
        with Meter() as meter:
            distributed.aligned_info_nce(frames, tokens, 5.0, None, mask, gather=gather).backward()
        assert meter.received == passes * caption_bytes, (gather, meter.received, caption_bytes)
        assert meter.largest == caption_bytes // (size - 1)
