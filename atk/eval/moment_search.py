"""Search recordings of any length for the moments at which text queries sound."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from atk.data import Clip
from atk.data.captions import OnError
from atk.data.containers import Stored
from atk.data.sets import read_all
from atk.eval.embed import EmbeddingModel
from atk.eval.long_audio import Frames, FrameStream
from atk.eval.moment_queries import Phrases, phrases_of
from atk.eval.moments import Moment, MomentConfig, find_moments
from atk.ops.checks import strings


class MomentHit(NamedTuple):
    """A moment of a recording: `path`, `moment`, and the curves around it, `curves [P, t]` and `times [t]`."""

    path: Path | Stored
    moment: Moment
    curves: Tensor
    times: Tensor


class MomentResults(NamedTuple):
    """`phrases` and `hits`, best first, of each query; `skipped`: (file name, reason) of files that cannot be read."""

    phrases: list[tuple[str, ...]]
    hits: list[list[MomentHit]]
    skipped: list[tuple[str, str]]


def search_moments(
    model: EmbeddingModel,
    folder: str | Path,
    queries: Sequence[str],
    *,
    config: MomentConfig | None = None,
    top: int = 10,
    around: float = 5.0,
    clip_seconds: float = 9.91,
    context_seconds: float | None = None,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    progress: str | None = None,
) -> MomentResults:
    """Find the moments of recordings that answer queries. "A, then B" is a moment in which A is followed by B.

    Args:
        model: embeds the recordings and the phrases of the queries (see `atk.eval.moment_queries.phrases_of`).
        folder: a recording, or what `atk.eval.search.search_all` takes.
        queries: texts to search for.
        config: how spans are made from the curves of the phrases; None = the defaults.
        top: number of moments for each query.
        around: seconds of the curves to keep on each side of a moment.
        clip_seconds, context_seconds: windows, as in `atk.eval.long_audio.FrameStream`.
        batch_size, workers, on_error, progress: as in `atk.eval.search.search_all`.

    Returns:
        The best moments of each query over all recordings. There may be fewer than `top`.

    Raises:
        FileNotFoundError, TypeError, ValueError, AudioError: as for `atk.eval.search.search_all`.
    """
    strings("queries", queries)
    parts = [phrases_of(query) for query in queries]
    if not parts:
        raise ValueError("query must contain at least one word, got an empty text")
    phrases = Phrases(model, [phrase for part in parts for phrase in part])
    files = read_all(folder, on_error)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error}
    stream = FrameStream(model, files.clips, clip_seconds, context_seconds, **options)
    hits: list[list[MomentHit]] = [[] for _ in queries]
    count = 0
    for clip, frames in stream.clips(phrases.curves, progress):
        count += 1
        for best, part in zip(hits, parts, strict=True):
            best.extend(_hits(clip, frames, phrases.columns(part), model.frame_seconds, config, top, around))
            best.sort(key=lambda hit: -hit.moment.score)
            del best[top:]
    if not count:
        raise ValueError(f"{folder}: none of its {len(stream.skipped)} audio files can be decoded")
    return MomentResults(parts, hits, files.skipped + stream.skipped)


def _hits(
    clip: Clip,
    curves: Frames,
    columns: list[int],
    frame_seconds: float,
    config: MomentConfig | None,
    top: int,
    around: float,
) -> Iterator[MomentHit]:
    """The best moments of a recording, from the curves `[T, P]` of all phrases."""
    mine = curves.frames[:, columns].T
    for moment in find_moments(mine, curves.times, frame_seconds, config, top):
        near = (curves.times > moment.start - around) & (curves.times < moment.end + around)
        yield MomentHit(clip.path, moment, mine[:, near], curves.times[near])
