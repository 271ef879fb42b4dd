"""Small modules in place of libraries that cannot be installed beside ours: only the names that we import or rebind."""

import sys
import types

import torch
import torch.nn.functional as F

from atk.integrations import rebinding


def module(monkeypatch, name, **contents):
    """A module `name` with these contents, and its parents, importable until the test ends."""
    parent, _, child = name.rpartition(".")
    if parent and parent not in sys.modules:
        module(monkeypatch, parent)
    made = types.ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)
    if parent:
        monkeypatch.setattr(sys.modules[parent], child, made, raising=False)
    return made


def installed(monkeypatch, adapter):
    """Let `adapter` find the latest version that it accepts."""
    monkeypatch.setattr(rebinding, "version", lambda package: adapter.VERSIONS[-1])


def maxsim(queries, documents):
    """The scores of all token pairs: `[N_q, N_d]`."""
    return torch.einsum("isd,jtd->ijst", queries, documents).amax(3).sum(2)


def kd_maxsim(queries, documents):
    """Each query and its own candidates `[N, K, L_d, D]`: `[N, K]`."""
    return torch.einsum("isd,iktd->ikst", queries, documents).amax(3).sum(2)


def pylate(monkeypatch):
    """Its dispatch: "lik" and "auto" call the backend, "torch" its own scores, and "auto" survives a refusal."""
    Unsupported = type("LIKUnsupported", (Exception,), {})
    names = ("colbert_scores_lik", "colbert_kd_scores_lik", "colbert_scores_pairwise_lik")
    lik = module(monkeypatch, "pylate.scores._lik_backend", LIKUnsupported=Unsupported, **dict.fromkeys(names))

    def dispatch(name, exact):
        def scores(queries, documents, queries_mask=None, documents_mask=None, backend="auto"):
            masks = () if name == names[2] else (queries_mask, documents_mask)
            if library._try_flash(backend, queries, documents):
                raise AssertionError
            if library._try_lik(backend, queries, documents):
                try:
                    return getattr(lik, name)(queries, documents, *masks)
                except Unsupported:
                    if backend == "lik":
                        raise
            queries, documents = (
                side if mask is None else side * mask[..., None]
                for side, mask in ((queries, queries_mask), (documents, documents_mask))
            )
            return exact(queries, documents)

        return scores

    library = module(
        monkeypatch, "pylate.scores.colbert", _try_lik=lambda *_: False, _try_flash=lambda *_: False,
        colbert_scores=dispatch(names[0], maxsim), colbert_kd_scores=dispatch(names[1], kd_maxsim),
        colbert_scores_pairwise=dispatch(names[2], lambda queries, documents: maxsim(queries, documents).diagonal()),
    )  # fmt: skip
    return library


def colpali(monkeypatch):
    """Its backend, which refuses everything here, and its scores, which try it first."""
    Unsupported = type("LIKUnsupportedError", (Exception,), {})

    def refuse(query, documents):
        raise Unsupported

    return module(
        monkeypatch, "colpali_engine.utils._lik_backend", LIKUnsupportedError=Unsupported, maxsim_inbatch_lik=refuse,
        maxsim_kd_lik=refuse,
    )  # fmt: skip


class ClipLoss:
    """open_clip's options and its loss of the N x N logits."""

    def __init__(self, local_loss=False, gather_with_grad=False, rank=0, world_size=1, use_horovod=False):
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod

    def __call__(self, *arguments, **options):
        return self.forward(*arguments, **options)

    def get_ground_truth(self, device, count):
        first = count * self.rank if self.world_size > 1 and self.local_loss else 0
        return torch.arange(count, device=device) + first

    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        logits = logit_scale * image_features @ text_features.T
        labels = self.get_ground_truth(logits.device, len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def open_clip(monkeypatch):
    """`open_clip.loss` with `ClipLoss`, and a factory that names it."""
    module(monkeypatch, "open_clip.factory", ClipLoss=ClipLoss)
    return module(monkeypatch, "open_clip.loss", ClipLoss=ClipLoss)
