"""Frame-token max-mean similarity (3.6): the public calls, for padded, packed and paired sequences."""

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences, from_cu_seqlens, from_padded
from atk.ops import checks
from atk.ops.backend import choose
from atk.ops.max_mean_op import normalize_rows, score

DIRECTIONS = ("audio", "text", "both")


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
    """Score every clip against every caption by the mean over frames of the best token (thesis eq. 3.6).

    `sim[i, j] = (1 / L_a) * sum_t max_l <audio[i, t], text[j, l]>`, over valid frames t and valid tokens l. With
    unit-length embeddings (or `normalize=True`) the inner product is the cosine. No backend but `"reference"` ever
    holds the `N_a x N_t x L_a x L_t` scores.

    Args:
        audio: frame embeddings `[N_a, L_a, D]`, float32, bfloat16 or float16 (float64: `"reference"` only).
        text: token embeddings `[N_t, L_t, D]`, same dtype and device.
        audio_mask: boolean `[N_a, L_a]`, True = valid frame; None = all. Holes are allowed.
        text_mask: boolean `[N_t, L_t]`, True = valid token; None = all.
        normalize: divide every embedding by its L2 norm first; those shorter than 1e-12 become 0, with gradient 0.
        direction: `"audio"` looks from frames to tokens as above; `"text"` takes for each token the best frame and
            the mean over tokens; `"both"` is the average of the two (FILIP).
        save_index: keep the winning token of every frame and caption for the backward, or compute it again there,
            which costs one more forward and no such memory. It takes `N_a * N_t * L_a` entries of 1 byte, of 2 for
            L_t > 256, of 4 for L_t > 32768; `"text"` exchanges L_a and L_t, `"both"` takes both. None keeps up to
            1 GiB a direction. The gradients are the same bit for bit.
        backend: `"auto"`, `"reference"`, `"cpp"` or `"triton"`; see `atk.backends()`.

    Returns:
        `[N_a, N_t]` scores in float32 (float64 for float64 input). Padding contributes nothing, whatever it holds; a
        clip without a valid frame or a caption without a valid token scores 0 with zero gradient; ties go to the
        first token; NaN in a valid position propagates as in `torch.max`. Under autocast the inputs are cast to its
        dtype, as for a matrix product.

    Raises:
        ValueError, TypeError: a shape, dtype, device or mask does not fit; the message names the argument.
        atk.BackendError: the backend asked for cannot run here.
        RuntimeError: when a second derivative is taken.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    sequences = from_padded(audio, audio_mask), from_padded(text, text_mask)
    return similarity(*sequences, normalize, direction, save_index, backend)


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
    """Score clip i against caption i only: `[N]`, the diagonal of `max_mean_similarity`, at 1/N of its cost.

    Args:
        audio: frame embeddings `[N, L_a, D]`.
        text: token embeddings `[N, L_t, D]`, same dtype and device.
        audio_mask, text_mask, normalize, direction, save_index, backend: as in `atk.max_mean_similarity`; masks are
            `[N, L_a]` and `[N, L_t]`.

    Returns, raises: as `atk.max_mean_similarity`.
    """
    checks.padded(audio, text, audio_mask, text_mask)
    checks.same_count(audio, text)
    sequences = from_padded(audio, audio_mask), from_padded(text, text_mask)
    return similarity(*sequences, normalize, direction, save_index, backend, pairs=True)


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
    """`max_mean_similarity` of packed sequences: clips of any length one after another, captions too, no padding.

    Args:
        audio: frame embeddings `[T_a, D]` of all clips.
        text: token embeddings `[T_t, D]` of all captions, same dtype and device.
        cu_seqlens_audio: int32 `[N_a + 1]`, from 0 to T_a: clip i is `audio[cu[i] : cu[i + 1]]`, perhaps empty.
        cu_seqlens_text: int32 `[N_t + 1]`, from 0 to T_t.
        max_seqlen_audio, max_seqlen_text: at least the longest clip and caption. None reads them and checks
            `cu_seqlens`, which waits for a GPU; given ones are trusted there with `cu_seqlens`, and a wrong number
            gives wrong results or a fault. On the CPU all are checked.
        normalize, direction, save_index, backend: as in `atk.max_mean_similarity`.

    Returns, raises: as `atk.max_mean_similarity`.
    """
    checks.embeddings("audio", audio, "T_a, D")
    checks.embeddings("text", text, "T_t, D", like=("audio", audio))
    checks.cu_seqlens("cu_seqlens_audio", cu_seqlens_audio, "audio", audio, max_seqlen_audio)
    checks.cu_seqlens("cu_seqlens_text", cu_seqlens_text, "text", text, max_seqlen_text)
    sequences = (
        from_cu_seqlens(audio, cu_seqlens_audio, max_seqlen_audio),
        from_cu_seqlens(text, cu_seqlens_text, max_seqlen_text),
    )
    return similarity(*sequences, normalize, direction, save_index, backend)


def similarity(
    audio: Sequences,
    text: Sequences,
    normalize: bool,
    direction: str,
    save_index: bool | None,
    backend: str,
    *,
    pairs: bool = False,
    sparse: bool = False,
) -> Tensor:
    """The similarity in the asked direction; `sparse`: the gradient will hold many exact zeros."""
    checks.one_of("direction", direction, DIRECTIONS)
    backend = choose(backend, audio.rows.device, audio.rows.dtype)
    if normalize:
        audio, text = (side._replace(rows=normalize_rows(side.rows, side.mask, backend)) for side in (audio, text))
    if audio.rows.dtype != torch.float64 and torch.is_autocast_enabled(audio.rows.device.type):
        dtype = torch.get_autocast_dtype(audio.rows.device.type)
        audio, text = (side._replace(rows=side.rows.to(dtype)) for side in (audio, text))
    options = {"pairs": pairs, "sparse": sparse, "save_index": save_index, "backend": backend}
    if direction == "audio":
        return score(audio, text, **options)
    by_text = score(text, audio, **options).mT if not pairs else score(text, audio, **options)
    return by_text if direction == "text" else (score(audio, text, **options) + by_text) / 2
