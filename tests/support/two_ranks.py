"""Losses of other libraries on two ranks: those with our ops equal those without, on each rank."""

import contextlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.distributed_ranks import failures
from support.integrations import assert_all_close, library, our_ops_run
from support.multi_vector import (
    colbert,
    colbert_features,
    loss_and_step,
    multi_vector_encoder,
    multi_vector_features,
    save_bert,
)
from torch.nn.parallel import DistributedDataParallel

from atk.integrations import grad_cache as grad_cache_adapter
from atk.integrations import open_clip as open_clip_adapter
from atk.integrations import pylate as pylate_adapter
from atk.integrations import sentence_transformers as sentence_transformers_adapter
from atk.nn import AlignedContrastiveLoss

COLUMNS = (  # of each rank
    (["who barks", "cat"], ["a dog barks, loudly", "the cat"], ["a bird, a bird sings", "a dog"]),
    (["what sings", "a bird"], ["a bird sings in the morning, and sings", "bird"], ["the cat", "loudly"]),
)

EXACT = {"atol": 1e-12, "rtol": 1e-9}  # in float64


def messages(library_name):
    """The errors of each case of one library, as `failures`."""
    return failures(2, f"support.two_ranks:{library_name}")


def clip_loss(local_loss, gather_with_grad, rank, size):
    losses = library("open_clip.loss")
    torch.manual_seed(rank)
    inputs = [F.normalize(torch.randn(5, 16, dtype=torch.float64), dim=-1).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(14.3, dtype=torch.float64, requires_grad=True))
    options = {"rank": rank, "world_size": size, "local_loss": local_loss, "gather_with_grad": gather_with_grad}

    def value_and_gradients(criterion):
        value = criterion(*inputs)
        return [value.detach(), *torch.autograd.grad(value, inputs)]

    with our_ops_run(expected=False):
        expected = value_and_gradients(losses.ClipLoss(**options))
    with our_ops_run():
        assert_all_close(value_and_gradients(open_clip_adapter.ClipLoss(**options)), expected, **EXACT)


@contextlib.contextmanager
def saved_bert(rank):
    """A folder with a BERT for all ranks; transformers saves on rank 0 only."""
    with TemporaryDirectory() as folder:
        if rank == 0:
            save_bert(folder)
        shared = [folder]
        dist.broadcast_object_list(shared)
        yield Path(shared[0])
        dist.barrier()


def multi_vector_loss(name, rank, size):
    losses = library("sentence_transformers.multi_vector_encoder.losses")
    with saved_bert(rank) as folder:
        model = multi_vector_encoder(folder)
        features = multi_vector_features(model, COLUMNS[rank])
        check_step(model, getattr(losses, name), features, sentence_transformers_adapter, atol=2e-5, rtol=1e-4)


def pylate_loss(name, rank, size):
    losses = library("pylate.losses")
    with saved_bert(rank) as folder:
        model = colbert(folder)
        check_step(model, getattr(losses, name), colbert_features(model, COLUMNS[rank]), pylate_adapter, **EXACT)


def check_step(model, loss, features, adapter, **tolerance):
    """The step on the documents of all ranks equals that without our ops, and differs from that on one rank."""
    step = partial(loss_and_step, model, features=features)
    with our_ops_run(expected=False):
        expected = step(loss(model, gather_across_devices=True))
    assert not torch.allclose(expected[0], step(loss(model))[0])
    with adapter.install(), our_ops_run():
        assert_all_close(step(loss(model, gather_across_devices=True)), expected, **tolerance)


class Encoder(torch.nn.Module):
    """Global vectors and frames, as GradCache takes them."""

    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(8, 16)

    def forward(self, rows):
        features = self.project(rows)
        return grad_cache_adapter.joined(features.mean(1), features)


def cached_gradients(rank, size):
    """Chunks on two ranks, contrasted with the pairs of both: the gradients of the whole batch on one process."""
    cached = library("grad_cache").GradCache
    pairs = 5
    models = [Encoder().double(), Encoder().double()]
    inputs = [torch.randn(size * pairs, length, 8, dtype=torch.float64) for length in (9, 6)]
    masks = [torch.rand(size * pairs, length) < 0.8 for length in (9, 6)]
    losses = [
        grad_cache_adapter.AlignedLoss(AlignedContrastiveLoss(0.1, learnable=True, gather=gather)).double()
        for gather in (None, "all")
    ]
    whole = losses[0](*(model(rows) for model, rows in zip(models, inputs, strict=True)), *masks)
    weights = [weight for model in models for weight in model.parameters()]
    expected = torch.autograd.grad(whole, [*weights, *losses[0].parameters()])

    replicas = [DistributedDataParallel(model) for model in models]
    part = slice(rank * pairs, (rank + 1) * pairs)
    options = dict(zip(("audio_mask", "text_mask"), (mask[part] for mask in masks), strict=True))
    with our_ops_run():
        value = cached(replicas, 2, losses[1])(*(rows[part] for rows in inputs), **options, no_sync_except_last=True)
    temperature = [weight.grad for weight in losses[1].parameters()]
    for summed in (value, *temperature):  # of all ranks, whereas DDP averages
        dist.all_reduce(summed)
    actual = [value, *(size * weight.grad for weight in weights), *temperature]
    # GradCache multiplies the cached gradients in float32.
    assert_all_close(actual, [whole.detach(), *expected], atol=1e-5, rtol=1e-4)


OPEN_CLIP = {
    f"local_loss={local}, gather_with_grad={with_grad}": partial(clip_loss, local, with_grad)
    for local in (False, True)
    for with_grad in (False, True)
}
SENTENCE_TRANSFORMERS = {
    name: partial(multi_vector_loss, name)
    for name in ("MultiVectorMultipleNegativesRankingLoss", "CachedMultiVectorMultipleNegativesRankingLoss")
}
PYLATE = {name: partial(pylate_loss, name) for name in ("Contrastive", "CachedContrastive")}
GRAD_CACHE = {"no_sync_except_last": cached_gradients}
