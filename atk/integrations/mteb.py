"""mteb: its MaxSim without the scores of all token pairs, and an encoder that scores audio and text by alignment.

`install()` covers every model with `similarity_fn_name="MaxSim"`. `AlignedEncoder(model)` is a model for its audio
tasks.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from atk.integrations.maxsim import maxsim, maxsim_pairs
from atk.integrations.rebinding import Rebinding, Replacements, import_library
from atk.models.clap import CLAP
from atk.ops.max_mean import max_mean_similarity, max_mean_similarity_pairs

__all__ = ["AlignedEncoder", "install", "max_sim", "pairwise_max_sim", "uninstall"]  # noqa: F822 (one is defined on first use)

VERSIONS = ("2.26.24",)
Items = Sequence[Tensor | np.ndarray] | np.ndarray | Tensor


def max_sim(a: Items, b: Items, batch_size: int = 128) -> Tensor:
    """mteb's `max_sim`: every query against every document.

    Args:
        a: queries `[N_a, L_a, D]`, or a list of `[L, D]`, or a single `[L, D]`.
        b: documents, likewise.
        batch_size: not used.

    Returns:
        `[N_a, N_b]`, float32 (float64 for float64 input). Unlike in mteb, the padding of lists never counts.

    Raises:
        ValueError, TypeError: as in `atk.max_mean_similarity`.
    """
    (queries, query_mask), (documents, document_mask) = _padded(a), _padded(b)
    return maxsim(queries, documents, query_mask, document_mask)


def pairwise_max_sim(queries_embeddings: Items, documents_embeddings: Items) -> Tensor:
    """mteb's `pairwise_max_sim`: query i against document i, `[N]`; arguments and errors as in `max_sim`."""
    (queries, query_mask), (documents, document_mask) = _padded(queries_embeddings), _padded(documents_embeddings)
    return maxsim_pairs(queries, documents, query_mask, document_mask)


def _replacements() -> Replacements:
    places = (import_library("mteb.similarity_functions"), import_library("mteb.models.abs_encoder"))
    return [(place, function.__name__, function) for place in places for function in (max_sim, pairwise_max_sim)]


_rebinding = Rebinding("mteb", VERSIONS, _replacements)
install = _rebinding.install
uninstall = _rebinding.uninstall


def _padded(items: Items) -> tuple[Tensor, Tensor | None]:
    """Embeddings `[N, L, D]`, and their boolean mask if they come as a list."""
    if isinstance(items, Tensor | np.ndarray):
        embeddings = torch.as_tensor(items)
        return (embeddings if embeddings.dim() == 3 else embeddings[None]), None
    rows = [torch.as_tensor(item) for item in items]
    padded = pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]


class _Alignment:
    """A CLAP as a model of mteb; similarities are max-mean similarities (3.6) of frames and tokens.

    Args:
        model: the CLAP, in evaluation mode.
        direction: as in `atk.max_mean_similarity`.
    """

    def __init__(self, model: CLAP, direction: str = "audio"):
        self.clap = model
        self.direction = direction
        self.audio_first = True  # in `similarity`; without queries, as in zero-shot classification, it is
        metadata = import_library("mteb.models.model_meta").ModelMeta
        # Tasks with audio are refused if a model does not say that it takes it.
        described = {"name": "atk/aligned", "modalities": ["audio", "text"], "embed_dim": model.dim}
        self.mteb_model_meta = metadata.create_empty(described)

    @torch.no_grad()
    def encode(
        self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, prompt_type: Any = None, **_: Any
    ) -> list[Tensor]:
        """Frames or tokens `[L, D]` of each item, unit-length, on the CPU.

        Raises:
            ValueError: the items have both audio and text.
        """
        features = inputs.dataset.features
        if "audio" in features and "text" in features:
            raise ValueError(f"{task_metadata.name}: items must have audio or text, got both")
        is_audio = "audio" in features
        if prompt_type is None or prompt_type.value == "query":
            self.audio_first = is_audio or prompt_type is None
        if is_audio:
            collators = import_library("mteb.models.modality_collators")
            inputs.collate_fn = collators.AudioCollator(target_sampling_rate=self.clap.sample_rate)
        return [rows for batch in inputs for rows in (self._clips if is_audio else self._captions)(batch)]

    def similarity(self, embeddings1: Items, embeddings2: Items) -> Tensor:
        """`[N_1, N_2]` of queries and documents, or of clips and labels."""
        return self._scores(max_mean_similarity, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Items, embeddings2: Items) -> Tensor:
        """Item i of the one against item i of the other, `[N]`."""
        return self._scores(max_mean_similarity_pairs, embeddings1, embeddings2)

    def _scores(self, op: Any, embeddings1: Items, embeddings2: Items) -> Tensor:
        (one, one_mask), (other, other_mask) = _padded(embeddings1), _padded(embeddings2)
        if self.audio_first:
            return op(one, other, one_mask, other_mask, direction=self.direction)
        scores = op(other, one, other_mask, one_mask, direction=self.direction)
        return scores.T if scores.dim() == 2 else scores

    def _clips(self, batch: Any) -> list[Tensor]:
        clips = [torch.as_tensor(clip["array"], dtype=torch.float32).flatten() for clip in batch["audio"]]
        lengths = torch.tensor([len(clip) for clip in clips])
        device = next(self.clap.parameters()).device
        embedding = self.clap.embed_audio(pad_sequence(clips, batch_first=True).to(device), lengths.to(device))
        return [rows[mask].cpu() for rows, mask in zip(embedding.frames, embedding.mask, strict=True)]

    def _captions(self, batch: Any) -> list[Tensor]:
        embedding = self.clap.embed_text(batch["text"])
        return [rows[mask].cpu() for rows, mask in zip(embedding.tokens, embedding.mask, strict=True)]


@functools.cache
def _aligned_encoder() -> type:
    base = import_library("mteb.models.abs_encoder").AbsEncoder
    return type("AlignedEncoder", (_Alignment, base), {"__module__": __name__, "__doc__": _Alignment.__doc__})


def __getattr__(name: str) -> Any:
    if name == "AlignedEncoder":
        return _aligned_encoder()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
