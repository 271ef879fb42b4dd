"""Backend `"chunked"` of max-mean similarity: plain PyTorch on any device, in any dtype, bitwise reproducible.

Shapes: N_a clips in T_a rows of frames, N_t captions in T_t rows of tokens, D channels. Only the scores of one tile
exist at a time, in float32 at least: those of some frames and the captions of similar length. Padding within a tile
repeats the first row of its sequence.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from atk.kernels.sequences import Sequences

TILE_TOKENS = 1024  # of all captions in a tile; a longer caption has tiles of its own
TILE_SCORES = 2 << 20  # 8 MiB in float32


class _Table(NamedTuple):
    """Packed rows of n sequences with up to L valid rows each, at least 1."""

    rows: Tensor  # [n, L] int64; the first one is repeated up to L
    counts: Tensor  # [n] int64, valid rows
    valid: Tensor | None  # [n, L] bool, False where a row is repeated; None if none is


class _ValidRows:
    """The valid rows of a batch of N sequences."""

    def __init__(self, sequences: Sequences) -> None:
        device, mask = sequences.rows.device, sequences.mask
        ends = sequences.cu_seqlens.long()
        if mask is None:
            self.rows = torch.arange(sequences.rows.shape[0], device=device)  # of all sequences, in order
        else:
            self.rows = mask.nonzero().squeeze(1)
            ends = torch.cat((ends.new_zeros(1), mask.cumsum(0)))[ends]
        self.starts = ends[:-1]  # [N] where each sequence starts in `rows`
        self.counts = ends.diff()  # [N]
        self.host_counts: list[int] = self.counts.tolist()

    def table(self, members: list[int]) -> _Table:
        """The rows of some sequences, none of them empty."""
        lengths = [self.host_counts[member] for member in members]
        index = torch.tensor(members, device=self.rows.device)
        counts = self.counts[index]
        position = torch.arange(max(lengths), device=self.rows.device)
        valid = position < counts[:, None]
        rows = self.rows[self.starts[index, None] + torch.where(valid, position, 0)]
        return _Table(rows, counts, None if min(lengths) == max(lengths) else valid)

    def groups(self, limit: int) -> list[list[int]]:
        """All sequences that are not empty, from long to short; a group pads to at most `limit` rows if it can."""
        order = sorted((s for s, count in enumerate(self.host_counts) if count), key=lambda s: -self.host_counts[s])
        groups: list[list[int]] = []
        for member in order:
            if groups and (len(groups[-1]) + 1) * self.host_counts[groups[-1][0]] <= limit:
                groups[-1].append(member)
            else:
                groups.append([member])
        return groups


class _Tile(NamedTuple):
    """B problems (1, or one per pair), each of G clips with up to L_a frames and C captions with up to L_t tokens."""

    frames: Tensor  # [B, G, L_a] int64, packed rows
    frame_valid: Tensor | None  # [B, G, L_a] bool; None: all
    tokens: Tensor  # [B, C, L_t] int64, packed rows
    token_counts: Tensor  # [B, C, 1] int64
    outputs: Tensor  # [B, C, G] int64, the positions of the scores in the flattened result
    index_rows: Tensor  # [B, C, 1] int64, the rows of the winner indices


def max_mean_forward(audio: Sequences, text: Sequences, sim: Tensor, index: Tensor | None, pairs: bool) -> None:
    """Writes `sim[i,j] = mean_{t valid} max_{l valid} <audio[i,t], text[j,l]>` (3.6) and the winning tokens.

    Args:
        audio: N_a clips `[T_a, D]`, any floating-point dtype.
        text: N_t captions `[T_t, D]`, same dtype.
        sim: `[N_a, N_t]`, float32 or float64, contiguous, fully overwritten; 0 if the clip or the caption has no valid
            rows.
        index: `[N_t, T_a]` of an integer dtype, contiguous, or None to skip the winners. Only the entries of valid
            frames are written: the token's index among the valid tokens of its caption.
        pairs: whether to compare clip i with caption i only; `sim` is then `[N]`, and `index` is `[T_a]`.
    """
    sim.zero_()
    clips, captions = _ValidRows(audio), _ValidRows(text)
    with torch.autocast(sim.device.type, enabled=False):
        for tile in _tiles(clips, captions, pairs):
            best, winner = _best(tile, *_embeddings(tile, audio, text, sim.dtype))
            if tile.frame_valid is not None:
                best = torch.where(tile.frame_valid[:, None], best, 0)
            sim.view(-1)[tile.outputs] += best.sum(3)
            if index is not None:
                if tile.frame_valid is not None:  # the entry of a repeated frame is written more than once
                    winner = torch.where(tile.frame_valid[:, None], winner, winner[..., :1])
                index.view(-1)[_entries(tile, index)] = winner.to(index.dtype)
    sim.div_(_per_score(clips.counts.clamp(min=1), pairs))


def max_mean_backward(
    grad: Tensor,
    audio: Sequences,
    text: Sequences,
    index: Tensor | None,
    grad_audio: Tensor,
    grad_text: Tensor,
    pairs: bool,
    sparse: bool,
) -> None:
    """Writes the gradients of `max_mean_forward`: products with a matrix that holds `grad / n_i` at the winners.

    Args: as in `atk.kernels.cpp.max_mean_backward`, with `grad` in the dtype of `sim` and any dtype of the embeddings.
    Without `index`, the winners are recomputed tile by tile; the gradients are bitwise the same.
    """
    clips, captions = _ValidRows(audio), _ValidRows(text)
    weights = (grad / _per_score(clips.counts.clamp(min=1), pairs)).view(-1)
    audio_sum, text_sum = (torch.zeros_like(rows, dtype=grad.dtype) for rows in (grad_audio, grad_text))
    with torch.autocast(grad.device.type, enabled=False):
        for tile in _tiles(clips, captions, pairs):
            frames, tokens = _embeddings(tile, audio, text, grad.dtype)
            saved = None if index is None else index.view(-1)[_entries(tile, index)].long()
            winner = _best(tile, frames, tokens)[1] if saved is None else saved
            weight = weights[tile.outputs][..., None].expand_as(winner)
            if tile.frame_valid is not None:
                weight = torch.where(tile.frame_valid[:, None], weight, 0)
            (B, C, L_t), (_, G, L_a) = tile.tokens.shape, tile.frames.shape
            at_winners = frames.new_zeros(B, C, L_t, G, L_a)
            at_winners = at_winners.scatter_(2, winner[:, :, None], weight[:, :, None]).view(B, C * L_t, G * L_a)
            # A repeated row adds zeros, so the order of the additions does not matter.
            audio_sum.index_add_(0, tile.frames.flatten(), torch.bmm(at_winners.mT, tokens).flatten(0, 1))
            text_sum.index_add_(0, tile.tokens.flatten(), torch.bmm(at_winners, frames).flatten(0, 1))
    grad_audio.copy_(audio_sum)
    grad_text.copy_(text_sum)


def _per_score(counts: Tensor, pairs: bool) -> Tensor:
    """Numbers `[N_a]`, one per clip, in a shape that broadcasts over the scores."""
    return counts if pairs else counts[:, None]


def _embeddings(tile: _Tile, audio: Sequences, text: Sequences, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Frames [B, G * L_a, D] and tokens [B, C * L_t, D] of a tile."""
    return audio.rows[tile.frames.flatten(1)].to(dtype), text.rows[tile.tokens.flatten(1)].to(dtype)


def _best(tile: _Tile, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The best score of each frame and caption [B, C, G, L_a], and the first token that has it."""
    scores = torch.bmm(tokens, frames.mT).view(*tile.tokens.shape, *tile.frames.shape[1:])  # [B, C, L_t, G, L_a]
    best, winner = scores.max(2)
    # The product may round the column of a repeated row differently, and so a repeated token can win.
    return best, torch.where(winner < tile.token_counts[..., None], winner, 0)


def _entries(tile: _Tile, index: Tensor) -> Tensor:
    """The positions of the winners [B, C, G, L_a] in the flattened index."""
    return tile.index_rows[..., None] * index.shape[-1] + tile.frames[:, None]


def _tiles(clips: _ValidRows, captions: _ValidRows, pairs: bool) -> Iterator[_Tile]:
    """All tiles, always in the same order."""
    longest = max(captions.host_counts)
    if pairs:
        for group in clips.groups(TILE_SCORES // max(1, longest)):
            if members := [member for member in group if captions.host_counts[member]]:
                tokens, pair = captions.table(members), _column(members, clips)
                frames = clips.table(members)
                for part, valid in _parts(frames, TILE_SCORES // tokens.rows.shape[1]):
                    yield _Tile(
                        part[:, None], None if valid is None else valid[:, None], tokens.rows[:, None],
                        tokens.counts[:, None, None], pair[..., None], torch.zeros_like(pair)[..., None],
                    )  # fmt: skip
        return
    limit = TILE_SCORES // max(TILE_TOKENS, longest)
    text_groups = [(_column(group, captions), captions.table(group)) for group in captions.groups(TILE_TOKENS)]
    for members in clips.groups(limit):
        clip = _column(members, clips).T
        for part, valid in _parts(clips.table(members), limit):
            for caption, tokens in text_groups:
                yield _Tile(
                    part[None], None if valid is None else valid[None], tokens.rows[None],
                    tokens.counts[None, :, None], (clip * len(captions.host_counts) + caption)[None], caption[None],
                )  # fmt: skip


def _column(members: list[int], sequences: _ValidRows) -> Tensor:
    """The numbers of some sequences, [n, 1] int64."""
    return torch.tensor(members, device=sequences.rows.device)[:, None]


def _parts(frames: _Table, limit: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cuts the frames of a clip that exceeds `limit` rows; yields the rows [n, L] and which are valid."""
    if frames.rows.shape[0] > 1:
        yield frames.rows, frames.valid
        return
    for part in frames.rows.split(max(1, limit), dim=1):
        yield part, None
