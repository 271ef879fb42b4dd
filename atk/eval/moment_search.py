"""Search recordings of any length for the moments at which text queries sound."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from atk.data.captions import OnError
from atk.data.containers import Stored
from atk.data.sets import read_all
from atk.eval.embed import EmbeddingModel
from atk.eval.long_audio import Frames, FrameStream
from atk.eval.moment_queries import Phrases, phrases_of
from atk.eval.moments import Moment, MomentConfig, find_moments
from atk.ops.checks import strings

if TYPE_CHECKING:
    from atk.eval.index import Index

_Place = Path | Stored | str  # str: the name of what lies inside a larger file of an index


class MomentHit(NamedTuple):
    """A moment of a recording: `path`, `moment`, and the curves around it, `curves [P, t]` and `times [t]`."""

    path: _Place
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
    parts, phrases = _phrases(model, queries)
    files = read_all(folder, on_error)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "on_error": on_error}
    stream = FrameStream(model, files.clips, clip_seconds, context_seconds, **options)
    curves = ((clip.path, curves) for clip, curves in stream.clips(phrases.curves, progress))
    hits, count = _best(curves, parts, phrases, model.frame_seconds, config, top, around)
    if not count:
        raise ValueError(f"{folder}: none of its {len(stream.skipped)} audio files can be decoded")
    return MomentResults(parts, hits, files.skipped + stream.skipped)


def search_indexed_moments(
    index: "Index",
    queries: Sequence[str],
    *,
    config: MomentConfig | None = None,
    top: int = 10,
    around: float = 5.0,
    model: EmbeddingModel | None = None,
) -> MomentResults:
    """As `search_moments`, in the frames of an index.

    Args:
        index: where to search.
        queries, config, top, around: as in `search_moments`.
        model: embeds the phrases, as in `Index.search`.

    Raises:
        TypeError, ValueError: as for `Index.search`.
    """
    model = index.model_for(model)
    parts, phrases = _phrases(model, queries)
    hits, _ = _best(index.mapped(phrases.curves), parts, phrases, index.header.frame_seconds, config, top, around)
    return MomentResults(parts, hits, [])


def _phrases(model: EmbeddingModel, queries: Sequence[str]) -> tuple[list[tuple[str, ...]], Phrases]:
    strings("queries", queries)
    parts = [phrases_of(query) for query in queries]
    if not parts:
        raise ValueError("query must contain at least one word, got an empty text")
    return parts, Phrases(model, [phrase for part in parts for phrase in part])


def _best(
    recordings: Iterable[tuple[_Place, Frames]],
    parts: Sequence[tuple[str, ...]],
    phrases: Phrases,
    frame_seconds: float,
    config: MomentConfig | None,
    top: int,
    around: float,
) -> tuple[list[list[MomentHit]], int]:
    """The best moments of each query in recordings, given by the curves `[T, P]` of all phrases; and their number."""
    hits: list[list[MomentHit]] = [[] for _ in parts]
    count = 0
    for path, curves in recordings:
        count += 1
        for best, part in zip(hits, parts, strict=True):
            best.extend(_hits(path, curves, phrases.columns(part), frame_seconds, config, top, around))
            best.sort(key=lambda hit: -hit.moment.score)
            del best[top:]
    return hits, count


def _hits(
    path: _Place,
    curves: Frames,
    columns: list[int],
    frame_seconds: float,
    config: MomentConfig | None,
    top: int,
    around: float,
) -> Iterator[MomentHit]:
    mine = curves.frames[:, columns].T
    for moment in find_moments(mine, curves.times, frame_seconds, config, top):
        near = (curves.times > moment.start - around) & (curves.times < moment.end + around)
        yield MomentHit(path, moment, mine[:, near], curves.times[near])
