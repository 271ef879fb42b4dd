"""Max-mean similarity (3.6) in Triton: forward that keeps the winners, backward by one-hot products, no atomics.

Shapes: N_a clips, N_t captions, L_a frames, L_t tokens, D channels. A program works on tiles of BLOCK_A frames of one
clip and of W = C * LT tokens: C consecutive captions, LT tokens of each. A caption longer than LT comes in chunks of
LT. Every output element belongs to one program, which adds up in a fixed order: results repeat bit for bit.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from atk.kernels.launch import Device, clip_parts, clips_per_program, max_mean_launch, unavailable

__all__ = ["max_mean_backward", "max_mean_forward", "unavailable"]

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_LOWEST = tl.constexpr(-torch.finfo(torch.float32).max)
_NONE = tl.constexpr(2**31 - 1)  # no valid token seen yet
_NEVER = tl.constexpr(-(2**31))  # the position of a padded token: equal to no index


@triton.jit
def _load_rows(base, row, row_ok, d0, D, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr):
    """Channels d0 to d0 + BLOCK_D of the given rows of D channels, 0 where not ok: [rows, BLOCK_D]."""
    d = d0 + tl.arange(0, BLOCK_D)
    ok = row_ok[:, None]
    if not EVEN_D:
        ok = ok & (d < D)[None, :]
    return tl.load(base + row[:, None] * D + d[None, :], mask=ok, other=0.0)


@triton.jit
def _valid(mask, base, offset, inside):
    """Which positions are inside the tensor and, if there is a mask, valid."""
    ok = inside
    if mask is not None:
        ok = tl.load(mask + base + offset, mask=inside, other=0) != 0
    return ok


@triton.jit
def _token_tile(j0, l0, N_t, L_t, C: tl.constexpr, LT: tl.constexpr):
    """The W tokens from l0 of captions from j0: rows counted from caption j0, positions, which are inside; each [W]."""
    slot = tl.arange(0, C * LT)
    position = l0 + slot % LT
    return slot // LT * L_t + position, position, (j0 + slot // LT < N_t) & (position < L_t)


@triton.jit
def _nan_maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _token_max(scores):
    """Max over the last of three axes; NaN wins, as in torch.max."""
    if _INTERPRETED:  # which runs a reduction of one's own element by element
        nan = tl.max((scores != scores).to(tl.int32), 2)
        best = tl.where(nan != 0, float("nan"), tl.max(scores, 2))
    else:
        best = tl.reduce(scores, 2, _nan_maximum)
    return best


@triton.jit
def _winners(scores, position, token_ok, BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr):
    """Best score and its position among the valid tokens of each caption: [BLOCK_A, W] -> two [BLOCK_A, C].

    The first of equal scores wins, the first NaN wins over everything; no valid token: -inf and _NONE.
    """
    scores = tl.where(token_ok[None, :], scores, float("-inf"))
    scores = tl.reshape(scores, (BLOCK_A, C, LT))
    best = _token_max(scores)
    # "Neither less nor greater" is true of NaN too, in one comparison; a NaN best must not match every other score.
    limit = tl.where(best == best, best, _LOWEST)[:, :, None]
    loses = (scores < limit) | (scores > limit)
    position = tl.reshape(tl.where(token_ok, position, _NONE), (1, C, LT))
    return best, tl.min(tl.where(loses, _NONE, position), 2)


@triton.jit(do_not_specialize=["N_a", "N_t", "L_t", "run"])
def forward_kernel(
    audio, text, audio_mask, text_mask, sim, index, N_a, N_t, L_a, L_t, D, run,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr,
    EVEN_D: tl.constexpr, STATIONARY: tl.constexpr,
):  # fmt: skip
    """sim[i, j] = mean over valid frames t of max over valid tokens l of <audio[i, t], text[j, l]>.

    A program owns C captions and a run of clips. It streams the clips' frames past the captions, tile after tile, and
    carries the sum over the tiles of a clip. STATIONARY: the captions fit one tile, which is loaded once.
    """
    groups = tl.cdiv(N_t, C)
    j0 = tl.program_id(0) % groups * C
    j = j0 + tl.arange(0, C)  # [C]
    first_clip = tl.program_id(0) // groups * run
    text_row = j0.to(tl.int64) * L_t
    text += text_row * D
    nonempty = tl.zeros((C,), tl.int32)
    for l0 in range(0, L_t, LT):
        row, position, row_in = _token_tile(j0, l0, N_t, L_t, C, LT)
        token_ok = _valid(text_mask, text_row, row, row_in)
        nonempty = tl.maximum(nonempty, tl.max(tl.reshape(token_ok.to(tl.int32), (C, LT)), 1))
    if STATIONARY:
        row, position, row_in = _token_tile(j0, 0, N_t, L_t, C, LT)
        token_ok = _valid(text_mask, text_row, row, row_in)
        tokens = tl.trans(_load_rows(text, row, row_in, 0, D, BLOCK_D, EVEN_D))  # [BLOCK_D, W]

    tiles = tl.cdiv(L_a, BLOCK_A)
    lane = tl.arange(0, BLOCK_A)
    total = tl.zeros((C,), tl.float32)
    count = 0
    for step in range(0, tl.minimum(run, N_a - first_clip) * tiles):
        i = (first_clip + step // tiles).to(tl.int64)
        t0 = step % tiles * BLOCK_A
        t_in = t0 + lane < L_a
        frame_row = i * L_a + t0
        frame_ok = _valid(audio_mask, frame_row, lane, t_in)  # [BLOCK_A]
        if STATIONARY:
            frames = _load_rows(audio + frame_row * D, lane, t_in, 0, D, BLOCK_D, EVEN_D)  # [BLOCK_A, BLOCK_D]
            scores = tl.dot(frames, tokens, input_precision="ieee")  # [BLOCK_A, W]
            best, winner = _winners(scores, position, token_ok, BLOCK_A, C, LT)
        else:
            best = tl.full((BLOCK_A, C), float("-inf"), tl.float32)
            winner = tl.full((BLOCK_A, C), _NONE, tl.int32)
            for l0 in range(0, L_t, LT):
                row, position, row_in = _token_tile(j0, l0, N_t, L_t, C, LT)
                scores = tl.zeros((BLOCK_A, C * LT), tl.float32)
                for d0 in range(0, D, BLOCK_D):
                    frames = _load_rows(audio + frame_row * D, lane, t_in, d0, D, BLOCK_D, EVEN_D)
                    tokens = tl.trans(_load_rows(text, row, row_in, d0, D, BLOCK_D, EVEN_D))
                    scores = tl.dot(frames, tokens, scores, input_precision="ieee")
                token_ok = _valid(text_mask, text_row, row, row_in)
                chunk_best, chunk_winner = _winners(scores, position, token_ok, BLOCK_A, C, LT)
                better = (chunk_best > best) | ((chunk_best != chunk_best) & (best == best)) | (winner == _NONE)
                best = tl.where(better, chunk_best, best)
                winner = tl.where(better, chunk_winner, winner)
        if index is not None:
            at = index + (i * N_t + j)[None, :] * L_a + (t0 + lane)[:, None]
            tl.store(at, winner.to(index.dtype.element_ty), mask=frame_ok[:, None] & (j < N_t)[None, :])
        total = tl.where(t0 == 0, 0.0, total) + tl.sum(tl.where(frame_ok[:, None], best, 0.0), 0)
        count = tl.where(t0 == 0, 0, count) + tl.sum(frame_ok.to(tl.int32), 0)
        mean = tl.where(nonempty != 0, total / tl.maximum(count, 1).to(tl.float32), 0.0)
        tl.store(sim + i * N_t + j, mean, mask=(j < N_t) & (t0 + BLOCK_A >= L_a))


@triton.jit(do_not_specialize=["N_a", "N_t", "L_t"])
def grad_audio_kernel(
    grad, inverse, peak, text, audio_mask, text_mask, index, grad_audio, N_a, N_t, L_a, L_t, D,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """grad_audio[i, t] = inverse[i] * sum over j of grad[i, j] * text[j, index[i, j, t]], with inverse[i] = 1 / n_i.

    A program owns a tile of frames by channels of one clip and streams the captions: P @ text, where row t of P holds
    grad[i, j] at column index[i, j, t] of caption j, else 0. P has the dtype of text: half precision rounds grad[i, j],
    divided by peak[i] = max over j of |grad[i, j]| lest it underflow. The error is at most 2^-9 (bfloat16) or 2^-11
    (float16) of the sum over j of |grad[i, j] / n_i * text|, as if the products had been stored in that dtype.
    """
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    tiles = tl.cdiv(L_a, BLOCK_A)
    i = (tl.program_id(0) // d_tiles // tiles).to(tl.int64)
    t0 = tl.program_id(0) // d_tiles % tiles * BLOCK_A
    lane = tl.arange(0, BLOCK_A)
    t_in = t0 + lane < L_a
    frame_row = i * L_a + t0
    largest = tl.load(peak + i)
    c = tl.arange(0, C)
    chunks = tl.cdiv(L_t, LT)
    total = tl.zeros((BLOCK_A, BLOCK_D), tl.float32)
    for step in range(0, tl.cdiv(N_t, C) * chunks):
        j0 = step // chunks * C
        row, position, row_in = _token_tile(j0, step % chunks * LT, N_t, L_t, C, LT)
        text_row = j0.to(tl.int64) * L_t
        token_ok = _valid(text_mask, text_row, row, row_in)  # [W]
        tokens = _load_rows(text + text_row * D, row, token_ok, d0, D, BLOCK_D, EVEN_D)  # [W, BLOCK_D]
        weight = tl.load(grad + i * N_t + j0 + c, mask=j0 + c < N_t, other=0.0) / largest  # [C]
        at = index + (i * N_t + j0) * L_a + t0 + c[None, :].to(tl.int64) * L_a + lane[:, None]
        winner = tl.load(at, mask=t_in[:, None] & (j0 + c < N_t)[None, :], other=0).to(tl.int32)  # [BLOCK_A, C]
        position = tl.reshape(tl.where(token_ok, position, _NEVER), (1, C, LT))
        hot = tl.where(winner[:, :, None] == position, weight[None, :, None], 0.0).to(text.dtype.element_ty)
        total = tl.dot(tl.reshape(hot, (BLOCK_A, C * LT)), tokens, total, input_precision="ieee")
    frame_ok = _valid(audio_mask, frame_row, lane, t_in)
    total = tl.where(frame_ok[:, None], total * (largest * tl.load(inverse + i)), 0.0)
    d = d0 + tl.arange(0, BLOCK_D)
    at = grad_audio + frame_row * D + lane[:, None] * D + d[None, :]
    tl.store(at, total.to(grad_audio.dtype.element_ty), mask=t_in[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["N_a", "N_t", "L_t", "run"])
def grad_text_kernel(
    grad, inverse, audio, audio_mask, text_mask, index, grad_text, N_a, N_t, L_a, L_t, D, run,
    BLOCK_A: tl.constexpr, C: tl.constexpr, LT: tl.constexpr, BLOCK_D: tl.constexpr, EVEN_D: tl.constexpr,
):  # fmt: skip
    """grad_text[j, l] = sum over i of grad[i, j] * inverse[i] * sum over t with index[i, j, t] = l of audio[i, t].

    A program owns a tile of tokens by channels and streams the frames of a run of clips: the inner sum is P @ audio
    with an exact 0-1 matrix P, weighted afterwards in float32. `grad_text` is [parts, N_t, L_t, D], a part for a run.
    Unlike in a gather, a non-finite frame or gradient reaches every valid token of the caption (0 * inf).
    """
    d_tiles = tl.cdiv(D, BLOCK_D)
    d0 = tl.program_id(0) % d_tiles * BLOCK_D
    chunks = tl.cdiv(L_t, LT)
    groups = tl.cdiv(N_t, C)
    tile = tl.program_id(0) // d_tiles
    part = tile // chunks // groups
    first_clip = part * run
    j0 = tile // chunks % groups * C
    row, position, row_in = _token_tile(j0, tile % chunks * LT, N_t, L_t, C, LT)
    c = tl.arange(0, C)
    row_caption = j0 + tl.arange(0, C * LT) // LT  # [W]
    lane = tl.arange(0, BLOCK_A)
    tiles = tl.cdiv(L_a, BLOCK_A)
    total = tl.zeros((C * LT, BLOCK_D), tl.float32)
    for step in range(0, tl.minimum(run, N_a - first_clip) * tiles):
        i = (first_clip + step // tiles).to(tl.int64)
        t0 = step % tiles * BLOCK_A
        t_in = t0 + lane < L_a
        frame_row = i * L_a + t0
        frame_ok = _valid(audio_mask, frame_row, lane, t_in)
        frames = _load_rows(audio + frame_row * D, lane, frame_ok, d0, D, BLOCK_D, EVEN_D)  # [BLOCK_A, BLOCK_D]
        at = index + (i * N_t + j0) * L_a + t0 + c[:, None].to(tl.int64) * L_a + lane[None, :]
        winner = tl.load(at, mask=(j0 + c < N_t)[:, None] & t_in[None, :], other=0).to(tl.int32)  # [C, BLOCK_A]
        hot = tl.where(winner[:, None, :] == tl.reshape(position, (C, LT, 1)), 1.0, 0.0)  # [C, LT, BLOCK_A]
        hot = tl.reshape(hot.to(audio.dtype.element_ty), (C * LT, BLOCK_A))
        share = tl.load(inverse + i)  # 0 for a clip without a valid frame, whose grad must not count even if NaN
        weight = tl.where(share > 0, tl.load(grad + i * N_t + row_caption, mask=row_in, other=0.0) * share, 0.0)
        total += weight[:, None] * tl.dot(hot, frames, input_precision="ieee")
    text_row = j0.to(tl.int64) * L_t
    total = tl.where(_valid(text_mask, text_row, row, row_in)[:, None], total, 0.0)
    d = d0 + tl.arange(0, BLOCK_D)
    at = grad_text + (part.to(tl.int64) * N_t * L_t + text_row) * D + row[:, None] * D + d[None, :]
    tl.store(at, total.to(grad_text.dtype.element_ty), mask=row_in[:, None] & (d < D)[None, :])


def max_mean_forward(
    audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, sim: Tensor, index: Tensor | None
) -> None:
    """Writes the similarities `sim` [N_a, N_t] float32 and, unless None, the winners `index` [N_a, N_t, L_a].

    audio [N_a, L_a, D] and text [N_t, L_t, D] are contiguous and of one dtype, float32, bfloat16 or float16; masks are
    boolean, True = valid, or None. `index` is uint8, int16 or int32, wide enough for L_t - 1; its entries at padded
    frames and at captions without a valid token mean nothing.
    """
    (N_a, L_a, D), (N_t, L_t, _) = audio.shape, text.shape
    device = Device.of(audio.device)
    launch = max_mean_launch("forward", audio.dtype, L_t, D, device)
    groups = triton.cdiv(N_t, launch.captions)
    run = clips_per_program(groups, N_a, triton.cdiv(L_a, launch.frames), device)
    grid = (groups * triton.cdiv(N_a, run),)
    with _on(audio.device):
        forward_kernel[grid](
            audio, text, _bytes(audio_mask), _bytes(text_mask), sim, index, N_a, N_t, L_a, L_t, D, run,
            **launch.meta(D),
        )  # fmt: skip


def max_mean_backward(
    grad: Tensor, audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None, index: Tensor,
    grad_audio: Tensor, grad_text: Tensor,
) -> None:  # fmt: skip
    """Writes the gradients `grad_audio` [N_a, L_a, D] and `grad_text` [N_t, L_t, D], zeros at padding.

    `grad` [N_a, N_t] float32 is the gradient of `sim`; the rest is as handed to and written by `max_mean_forward`.
    """
    (N_a, L_a, D), (N_t, L_t, _) = audio.shape, text.shape
    device = Device.of(audio.device)
    masks = _bytes(audio_mask), _bytes(text_mask)
    frames = grad.new_full((N_a,), L_a) if audio_mask is None else audio_mask.sum(1)
    inverse = torch.where(frames > 0, 1 / frames, 0)  # [N_a]
    peak = grad.abs().amax(1)
    peak = torch.where((peak > 0) & (peak < torch.inf), peak, 1)  # [N_a]
    with _on(audio.device):
        launch = max_mean_launch("grad_audio", audio.dtype, L_t, D, device)
        grid = (N_a * triton.cdiv(L_a, launch.frames) * triton.cdiv(D, launch.channels),)
        grad_audio_kernel[grid](
            grad, inverse, peak, text, *masks, index, grad_audio, N_a, N_t, L_a, L_t, D, **launch.meta(D)
        )
        launch = max_mean_launch("grad_text", audio.dtype, L_t, D, device)
        tiles = triton.cdiv(N_t, launch.captions) * triton.cdiv(L_t, launch.tokens) * triton.cdiv(D, launch.channels)
        run = triton.cdiv(N_a, clip_parts(tiles, N_a, device))
        parts = triton.cdiv(N_a, run)
        out = grad_text if parts == 1 else grad.new_empty(parts, *grad_text.shape)
        grad_text_kernel[(tiles * parts,)](
            grad, inverse, audio, *masks, index, out, N_a, N_t, L_a, L_t, D, run, **launch.meta(D)
        )
        if parts > 1:
            grad_text.copy_(out.sum(0))


def _bytes(mask: Tensor | None) -> Tensor | None:
    """The same memory as 0 and 1: Triton has no pointers to booleans of one byte."""
    return None if mask is None else mask.view(torch.uint8)


def _on(device: torch.device) -> AbstractContextManager:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
