"""Losses on timed captions: texts that hold for some frames of a clip and not for the others.

Both start from the score of every frame for every text, its highest cosine with a token (3.6), `[N, L_a, K]`; the
`N x L_a x K x L_t` products are never materialized. The mean of these scores over the frames of a span is the max-mean
similarity of the span, so spans are not copied.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.distributed import total
from atk.distributed.collectives import Gather, LogSumExp, exchange_layout, gather_rows, join_graph, world_size
from atk.distributed.exchange import cu_seqlens_of
from atk.kernels.sequences import Sequences, from_padded
from atk.ops import checks
from atk.ops.max_mean import similarity

_NEVER = -1e4  # the logit of a pair that does not count; finite, so that a softmax over nothing else has a gradient


class TimedTokens(NamedTuple):
    """M timed captions of N clips, in the order of the clips.

    Attributes:
        tokens: `[M, L_t, D]`, normalized by the loss.
        token_mask: boolean `[M, L_t]`, True = valid.
        ids: int64 `[M]`, above 0; equal for captions with the same text.
        counts: int64 `[N]`, the number of captions of each clip; they add up to M.
        spans: int64 `[M, P, 2]`, the first frame of each span and the one after its last; empty spans are padding.
        left_out: int64 `[N, Q]`, the ids of texts that sound in a clip at unknown times; 0 = padding.
    """

    tokens: Tensor
    token_mask: Tensor
    ids: Tensor
    counts: Tensor
    spans: Tensor
    left_out: Tensor


class _Texts(NamedTuple):
    """The K timed captions of all ranks: their scores on local clips, their ids, and which of them are local."""

    scores: Tensor  # [N, L_a, K]
    ids: Tensor  # [K]
    local: slice
    graph: Tensor | None  # 0, but its backward reaches the captions of all ranks; None on a single rank


class _Clip(NamedTuple):
    """A local clip and its C captions, against all K texts."""

    scores: Tensor  # [L_a, K]
    mask: Tensor  # [L_a], valid frames
    inside: Tensor  # [C, L_a], frames inside the spans of a caption
    same: Tensor  # [C, K], whether a caption and a text are the same
    unknown: Tensor  # [K], texts that sound at unknown times
    first: int  # index of its first caption among the K texts

    @property
    def matching(self) -> slice:
        """Its captions among the K texts."""
        return slice(self.first, self.first + len(self.inside))


class TimedLoss(nn.Module):
    """The aligned loss between the frames of spans and their captions, and a sigmoid loss of every frame and caption.

    - `"timed"`: the aligned loss, where a timed caption is a text whose clip is the frames inside its spans. Texts that
      sound during a span, or whose times in the clip are unknown, are not negatives of this span.
    - `"frames"`: the sigmoid loss of every frame and every text: 1 inside the spans of the text, 0 elsewhere. Clips
      without timed captions and texts with unknown times do not count. It is the sum over texts, and the mean over
      frames.

    Args:
        timed_weight, frame_weight: weights of the two terms; a term with weight 0 is not computed.
        temperature, bias: of `"frames"`, where both start; both are learned.
        backend: as in `atk.max_mean_similarity`; on a GPU, always `"chunked"`, except for `"reference"`.
        gather: None contrasts the captions of this rank only; otherwise, those of all ranks are gathered.

    Raises:
        ValueError: an option is out of range.
    """

    log_frame_scale: nn.Parameter
    frame_bias: nn.Parameter

    def __init__(
        self,
        *,
        timed_weight: float = 1.0,
        frame_weight: float = 0.0,
        temperature: float = 0.1,
        bias: float = -5.0,
        backend: str = "auto",
        gather: str | None = None,
    ):
        super().__init__()
        if min(timed_weight, frame_weight) < 0 or timed_weight + frame_weight == 0:
            raise ValueError(
                f"timed_weight and frame_weight must be >= 0 and not both 0, got {timed_weight}, {frame_weight}"
            )
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.weights = {"timed": timed_weight, "frames": frame_weight}
        self.backend = backend
        self.gather = gather
        if frame_weight:
            self.log_frame_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
            self.frame_bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(
        self,
        frames: Tensor,
        frame_mask: Tensor,
        texts: TimedTokens,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        reduction: str = "sum",
    ) -> dict[str, Tensor]:
        """The unweighted losses `"timed"` and `"frames"`, except those with weight 0; 0 without timed captions.

        Args:
            frames: `[N, L_a, D]`, normalized here.
            frame_mask: boolean `[N, L_a]`, True = valid.
            texts: the timed captions of these clips.
            logit_scale: factor of the similarities in `"timed"`.
            logit_bias: added to the logits in `"timed"`, which is then a sigmoid loss; None: InfoNCE.
            reduction: as in `atk.info_nce`.

        Raises:
            ValueError, TypeError: a shape or dtype is wrong.
        """
        checks.embeddings("frames", frames, "N, L_a, D")
        checks.embeddings("tokens", texts.tokens, "M, L_t, D", like=("frames", frames))
        names = [name for name, weight in self.weights.items() if weight]
        everyone = self._all_texts(frames, frame_mask, texts)
        zero = everyone.scores.sum() * 0 if everyone.graph is None else everyone.graph
        if not len(everyone.ids):
            zero = zero + frames.sum() * 0
            return dict.fromkeys(names, zero)
        terms = {}
        with torch.autocast(frames.device.type, enabled=False):  # means and logits in float32
            clips = list(_clips(everyone, frame_mask, texts))
            if "timed" in names:
                terms["timed"] = zero + self._timed(clips, everyone, logit_scale, logit_bias, reduction)
            if "frames" in names:
                terms["frames"] = zero + self._frames(clips, everyone)
        return terms

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of what `forward` returned."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def readings(self) -> dict[str, Tensor]:
        """What the loss has learned so far, for the log."""
        if not self.weights["frames"]:
            return {}
        return {"frame_scale": self.log_frame_scale.exp(), "frame_bias": self.frame_bias}

    @property
    def _alone(self) -> bool:
        return self.gather is None or world_size() == 1

    def _all_texts(self, frames: Tensor, frame_mask: Tensor, texts: TimedTokens) -> _Texts:
        """Gather the texts of all ranks and score the local frames for them."""
        N, L, D = frames.shape
        ids, local, graph = texts.ids, slice(0, len(texts.ids)), None
        if self._alone:
            captions = from_padded(texts.tokens, texts.token_mask)
        else:
            rows, lengths = texts.tokens[texts.token_mask], texts.token_mask.sum(1, dtype=torch.int32)
            longest = int(lengths.max()) if len(lengths) else 0
            layout = exchange_layout("timed captions", rows, len(lengths), longest, frames.requires_grad, None)
            rows = Gather.apply(join_graph(rows, layout.rows_differentiable), layout.rows, None)
            ids, local = gather_rows(ids, layout.items, None), layout.local
            cu_seqlens = cu_seqlens_of(gather_rows(lengths, layout.items, None))
            captions = Sequences(rows, cu_seqlens, None, layout.longest)
            graph = rows.sum() * 0
        if not len(ids):
            return _Texts(frames.new_zeros(N, L, 0), ids, local, graph)
        one_by_one = torch.arange(N * L + 1, dtype=torch.int32, device=frames.device)
        single = Sequences(frames.reshape(N * L, D), one_by_one, frame_mask.reshape(-1), 1)
        # The Triton kernels would give each frame a tile of its own.
        backend = "chunked" if frames.is_cuda and self.backend != "reference" else self.backend
        scores = similarity(single, captions, True, "audio", None, backend)
        return _Texts(scores.view(N, L, len(ids)), ids, local, graph)

    def _timed(
        self, clips: list[_Clip], everyone: _Texts, scale: Tensor, bias: Tensor | None, reduction: str
    ) -> Tensor:
        """This rank's share of the aligned loss between spans and captions."""
        sim, counts, usable = _spans(clips, everyone)
        shift = 0.0 if bias is None else bias
        offset = everyone.local.start
        positive = torch.arange(len(sim), device=sim.device) + offset
        logits = (sim * scale + shift).masked_fill(~counts, _NEVER)
        matched = logits.gather(1, positive[:, None])[:, 0]
        spans = self._sum(usable.sum()).clamp(min=1)
        if bias is not None:
            negatives = F.softplus(logits).scatter(1, positive[:, None], 0.0).sum(1)
            return ((negatives + F.softplus(-matched)) * usable).sum() / spans
        columns = logits.logsumexp(0) if len(logits) else logits.new_full((logits.shape[1],), _NEVER)
        if everyone.graph is not None:
            columns = LogSumExp.apply(columns + everyone.graph, None)
        by_span, by_text = logits.logsumexp(1) - matched, columns[everyone.local] - matched
        share = ((by_span + by_text) * usable).sum() / spans
        return share if reduction == "sum" else share / 2

    def _frames(self, clips: list[_Clip], everyone: _Texts) -> Tensor:
        """This rank's share of the sigmoid loss of frames and texts."""
        scale, bias = self.log_frame_scale.exp(), self.frame_bias
        loss = scale.new_zeros((), dtype=everyone.scores.dtype)
        heard_frames = torch.zeros((), dtype=torch.int64, device=loss.device)
        for clip in clips:
            if not len(clip.inside):
                continue
            sounds = (clip.inside.T.float() @ clip.same.float()) > 0
            counts = clip.mask[:, None] & ~clip.unknown
            logits = clip.scores * scale + bias
            loss = loss + F.binary_cross_entropy_with_logits(
                logits, sounds.to(logits.dtype), counts.to(logits.dtype), reduction="sum"
            )
            heard_frames += clip.mask.sum()
        return loss / self._sum(heard_frames).clamp(min=1)

    def _sum(self, count: Tensor) -> Tensor:
        """The sum of a number over ranks."""
        return count if self._alone else total(count)


def _clips(everyone: _Texts, frame_mask: Tensor, texts: TimedTokens) -> Iterator[_Clip]:
    """The clips of this rank, one by one."""
    counts = texts.counts.tolist()
    time = torch.arange(frame_mask.shape[1], device=frame_mask.device)
    first = everyone.local.start
    rows = zip(
        everyone.scores, frame_mask, texts.spans.split(counts), texts.ids.split(counts), texts.left_out, strict=True
    )
    for scores, mask, spans, ids, left_out in rows:
        inside = ((time >= spans[..., :1]) & (time < spans[..., 1:])).any(1) & mask
        same = ids[:, None] == everyone.ids
        unknown = (left_out[:, None] == everyone.ids).any(0)
        yield _Clip(scores, mask, inside, same, unknown, first)
        first += len(ids)


def _spans(clips: list[_Clip], everyone: _Texts) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity of spans and texts `[M, K]`, which of these pairs count, and which spans have a frame `[M]`."""
    texts = len(everyone.ids)
    sim = [everyone.scores.new_zeros(0, texts)]
    counts = [everyone.ids.new_zeros(0, texts, dtype=torch.bool)]
    usable = [everyone.ids.new_zeros(0, dtype=torch.bool)]
    for clip in clips:
        weights = clip.inside.to(clip.scores.dtype)
        sim.append((weights / weights.sum(1, keepdim=True).clamp(min=1)) @ clip.scores)  # 0 without a frame
        shared = clip.inside.float()
        overlapping = (shared @ shared.T) > 0
        sounding = (overlapping.float() @ clip.same.float()) > 0
        allowed = ~(sounding | clip.same | clip.unknown)
        allowed[:, clip.matching] |= torch.eye(len(shared), dtype=torch.bool, device=allowed.device)
        heard = clip.inside.any(1)
        counts.append(allowed & heard[:, None])
        usable.append(heard)
    return torch.cat(sim), torch.cat(counts), torch.cat(usable)
