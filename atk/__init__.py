"""Fused kernels and lean trainers for audio-text learning."""

from typing import TYPE_CHECKING

from atk import nn
from atk.ops.backend import BackendError, backends
from atk.ops.cross_attention import cross_attention_difference
from atk.ops.info_nce import aligned_info_nce, info_nce, pairwise_logsumexp
from atk.ops.max_mean import max_mean_similarity, max_mean_similarity_pairs, max_mean_similarity_varlen
from atk.ops.sigmoid import aligned_sigmoid_loss, sigmoid_loss

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    import torch

    from atk.eval.embedder import Embedder

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "aligned_info_nce",
    "aligned_sigmoid_loss",
    "backends",
    "cross_attention_difference",
    "info_nce",
    "load",
    "max_mean_similarity",
    "max_mean_similarity_pairs",
    "max_mean_similarity_varlen",
    "nn",
    "pairwise_logsumexp",
    "sigmoid_loss",
]


def load(
    source: "str | Path",
    *,
    device: str = "auto",
    dtype: "torch.dtype | None" = None,
    tokenizer: str | None = None,
    long_clips: "Literal['windows', 'crop', 'fusion']" = "windows",
    clip_seconds: float | None = None,
) -> "Embedder":
    """Load a contrastive audio-text model to embed and compare audio and text. Needs the extra `train`.

    Args:
        source: a run folder (its best checkpoint) or one of its checkpoints; a folder or hub repository with what
            `CLAP.save_pretrained` or `transformers.ClapModel` has saved; or a file of LAION-CLAP (`.pt`) or MS-CLAP
            2023 (`.pth`).
        device: "auto" (a GPU, if there is one), "cpu", "cuda", or "cuda:1".
        dtype: of the weights; None = float32. Embeddings are always float32.
        tokenizer: local folder or hub name of the tokenizer of a `.pt` or `.pth` file, which holds none; None =
            roberta-base for LAION-CLAP, gpt2 for MS-CLAP.
        long_clips: how clips are embedded that are longer than the model's input, 10 s or 7 s in the published models:
            "windows" averages the embeddings of all windows; "crop" takes one random crop, as MS-CLAP and LAION-CLAP
            without fusion do; "fusion" fuses the whole clip and three chunks, as LAION-CLAP with fusion does. Random
            positions depend only on the length of the clip, so results repeat.
        clip_seconds: length of the windows; None = that of the run, or else the length of the model's input.

    Returns:
        An `atk.eval.embedder.Embedder`. With a unified model, it also captions.

    Raises:
        ValueError: `source` holds no such model, or an argument does not fit it.
        FileNotFoundError: `source` is a run folder without a checkpoint.
        ImportError: a package is missing; the message names the extra that installs it.
    """
    from atk.eval.embedder import Embedder

    return Embedder.load(source, device, dtype, tokenizer, long_clips, clip_seconds)
