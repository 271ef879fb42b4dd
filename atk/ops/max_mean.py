"""Frame-token max-mean similarity (3.6): the public functions, for padded, paired, and packed sequences.

They are `atk.max_mean_similarity`, `atk.max_mean_similarity_pairs`, and `atk.max_mean_similarity_varlen`. The autograd
ops behind them are in `max_mean_op`.
"""

from typing import Literal, get_args

from torch import Tensor

from atk.kernels.sequences import Sequences, from_cu_seqlens, from_padded
from atk.ops import checks
from atk.ops.backend import autocast_dtype, choose
from atk.ops.custom_op import hooks_see_saved_tensors, watched
from atk.ops.max_mean_one_token import one_token_score
from atk.ops.max_mean_op import normalize_rows, padded_score, score

Direction = Literal["audio", "text", "both"]
DIRECTIONS = get_args(Direction)


def max_mean_similarity(
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    direction: str = "audio",
    save_index: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """Score every clip against every caption: the mean over frames of the best token's score (thesis eq. 3.6).

    `sim[i, j] = (1 / L_a) * sum_t max_l <audio[i, t], text[j, l]>`, over valid frames t and valid tokens l. For
    unit-length embeddings (or with `normalize=True`) the inner product is the cosine. Only `"reference"` materializes
    the `N_a x N_t x L_a x L_t` scores.

    Args:
        audio: frame embeddings `[N_a, L_a, D]`, float32, bfloat16, float16, or float64 (not `"cpp"` or
            `"triton"`).
        text: token embeddings `[N_t, L_t, D]`, same dtype and device.
        audio_mask: boolean `[N_a, L_a]`, True = valid frame, in any pattern; None = all valid.
        text_mask: boolean `[N_t, L_t]`, True = valid token, in any pattern; None = all valid.
        normalize: divide every embedding by its L2 norm first; norms below 1e-12 give 0, with zero gradient.
        direction: `"audio"` takes the best token for each frame and the mean over frames, as above; `"text"` takes the
            best frame for each token and the mean over tokens; `"both"` is the average of the two (FILIP).
        save_index: True saves the winning token of every frame and caption for the backward; False recomputes it
            there, which costs one more forward but not this memory: `N_a * N_t * L_a` entries of 1 byte (2 for
            L_t > 256, 4 for L_t > 32768). `"text"` swaps L_a and L_t, and `"both"` saves both. None saves them if they
            take at most 1 GiB per direction. The gradients are the same bit for bit.
        backend: `"auto"`, `"triton"`, `"cpp"`, `"chunked"` (plain PyTorch, any device), or `"reference"`; see
            `atk.backends()`.

    Returns:
        `[N_a, N_t]` scores in float32 (float64 for float64 input). Padding contributes nothing, whatever values it
        holds. A clip without a valid frame or a caption without a valid token scores 0, with zero gradient. Ties go to
        the first token. NaN in a valid position propagates as in `torch.max`. Under autocast, the inputs are cast to
        the autocast dtype, as for a matrix product.

    Raises:
        ValueError, TypeError: a shape, dtype, device, or mask is invalid; the message names the argument.
        atk.BackendError: the requested backend cannot run here.
        RuntimeError: when a second derivative is taken.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    masks = [mask for mask in (audio_mask, text_mask) if mask is not None]
    if not normalize and direction == "audio" and _scored_as_padded(audio, text, masks, backend):
        return padded_score(audio, text, audio_mask, text_mask, save_index)
    clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
    return similarity(clips, captions, normalize, direction, save_index, backend, padded=True)


def _scored_as_padded(audio: Tensor, text: Tensor, masks: list[Tensor], backend: str) -> bool:
    """Whether `padded_score` takes these embeddings."""
    return (
        not watched(audio, text, *masks)
        and not hooks_see_saved_tensors()  # `score` saves more, and a checkpoint may be recomputed while watched
        and audio.is_cpu
        and audio.dtype == text.dtype == autocast_dtype(audio)
        and text.shape[1] > 1  # `one_token_score` is faster
        and audio.numel() > 0
        and text.shape[0] > 0
        and choose(backend, audio.device, audio.dtype) == "cpp"
    )


def max_mean_similarity_pairs(
    audio: Tensor,
    text: Tensor,
    audio_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    normalize: bool = False,
    direction: str = "audio",
    save_index: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """Score clip i against caption i only: the diagonal of `max_mean_similarity` `[N]`, at 1/N of its cost.

    Args:
        audio: frame embeddings `[N, L_a, D]`.
        text: token embeddings `[N, L_t, D]`, same dtype and device.
        audio_mask, text_mask, normalize, direction, save_index, backend: as in `atk.max_mean_similarity`; masks are
            `[N, L_a]` and `[N, L_t]`.

    Returns, raises: as in `atk.max_mean_similarity`.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    checks.same_count(audio, text)
    clips, captions = from_padded(audio, audio_mask), from_padded(text, text_mask)
    return similarity(clips, captions, normalize, direction, save_index, backend, padded=True, pairs=True)


def max_mean_similarity_varlen(
    audio: Tensor,
    text: Tensor,
    cu_seqlens_audio: Tensor,
    cu_seqlens_text: Tensor,
    *,
    max_seqlen_audio: int | None = None,
    max_seqlen_text: int | None = None,
    normalize: bool = False,
    direction: str = "audio",
    save_index: bool | None = None,
    backend: str = "auto",
) -> Tensor:
    """`max_mean_similarity` of packed sequences: clips and captions of any lengths, concatenated without padding.

    Args:
        audio: frame embeddings `[T_a, D]` of all clips.
        text: token embeddings `[T_t, D]` of all captions, same dtype and device.
        cu_seqlens_audio: int32 `[N_a + 1]`, from 0 to T_a: clip i is `audio[cu[i] : cu[i + 1]]`, possibly empty.
        cu_seqlens_text: int32 `[N_t + 1]`, from 0 to T_t.
        max_seqlen_audio, max_seqlen_text: upper bounds on the lengths of clips and captions. None computes them and
            checks `cu_seqlens`, which synchronizes with a GPU. If bounds are given on a GPU, neither they nor the
            values in `cu_seqlens` are checked, and wrong ones give wrong results or an illegal memory access. On the
            CPU, all are checked.
        normalize, direction, save_index, backend: as in `atk.max_mean_similarity`.

    Returns, raises: as in `atk.max_mean_similarity`.
    """
    checks.embeddings("audio", audio, "T_a, D")
    checks.embeddings("text", text, "T_t, D", like=("audio", audio))
    checks.cu_seqlens("cu_seqlens_audio", cu_seqlens_audio, "audio", audio, max_seqlen_audio)
    checks.cu_seqlens("cu_seqlens_text", cu_seqlens_text, "text", text, max_seqlen_text)
    clips = from_cu_seqlens(audio, cu_seqlens_audio, max_seqlen_audio)
    captions = from_cu_seqlens(text, cu_seqlens_text, max_seqlen_text)
    return similarity(clips, captions, normalize, direction, save_index, backend)


def similarity(
    audio: Sequences,
    text: Sequences,
    normalize: bool,
    direction: str,
    save_index: bool | None,
    backend: str,
    *,
    padded: bool = False,
    pairs: bool = False,
    sparse: bool = False,
) -> Tensor:
    """What the public functions share.

    Args:
        padded: whether `audio` and `text` come from `from_padded`.
        sparse: whether the incoming gradient is expected to have many exact zeros.
    """
    checks.one_of("direction", direction, DIRECTIONS)
    dtype = autocast_dtype(audio.rows)
    automatic = backend == "auto"
    has_rows = audio.rows.shape[0] > 0 and text.rows.shape[0] > 0
    backend = choose(backend, audio.rows.device, dtype)
    if normalize:
        audio = audio._replace(rows=normalize_rows(audio.rows, audio.mask, backend))
        text = text._replace(rows=normalize_rows(text.rows, text.mask, backend))
    if audio.rows.dtype != dtype or text.rows.dtype != dtype:
        audio = audio._replace(rows=audio.rows.to(dtype))
        text = text._replace(rows=text.rows.to(dtype))

    def scored(averaged: Sequences, maximized: Sequences) -> Tensor:
        if automatic and padded and has_rows and maximized.longest == 1:
            return one_token_score(averaged, maximized, pairs=pairs)
        return score(averaged, maximized, pairs=pairs, sparse=sparse, save_index=save_index, backend=backend)

    if direction == "audio":
        return scored(audio, text)
    by_text = scored(text, audio)
    if not pairs:
        by_text = by_text.mT
    return by_text if direction == "text" else (scored(audio, text) + by_text) / 2
