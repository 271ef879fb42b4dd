"""Rank the audio files of a folder, or of any data set, by their similarity to text queries."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atk.data.captions import OnError
from atk.data.containers import Stored
from atk.eval.embed import ALL_FILES, EmbeddingModel, embed_all, embed_tokens, evaluating
from atk.eval.scores import SCORES, Score, similarities
from atk.ops.checks import one_of, strings

Hits = list[tuple[float, Path | Stored]]


class SearchResult(NamedTuple):
    """`hits`: (similarity, path) of every readable file, best first; `skipped`: (file name, reason) of the others."""

    hits: Hits
    skipped: list[tuple[str, str]]


class SearchResults(NamedTuple):
    """`hits` as in `SearchResult`, for each query; `skipped`: (file name, reason) of files that cannot be read."""

    hits: list[Hits]
    skipped: list[tuple[str, str]]


def search(
    model: EmbeddingModel,
    folder: str | Path,
    query: str,
    *,
    score: Score = "global",
    clip_seconds: float | None = 9.91,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    progress: str | None = None,
) -> SearchResult:
    """Rank the audio files in a folder by the similarity of clip and query: `search_all` with a single query."""
    results = search_all(
        model,
        folder,
        [query],
        score=score,
        clip_seconds=clip_seconds,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
        progress=progress,
    )
    return SearchResult(results.hits[0], results.skipped)


def search_all(
    model: EmbeddingModel,
    folder: str | Path,
    queries: Sequence[str],
    *,
    score: Score = "global",
    clip_seconds: float | None = 9.91,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    progress: str | None = None,
) -> SearchResults:
    """Rank the audio files in a folder by the similarity of clip and query, for several queries at once.

    Args:
        model: embeds the clips and the queries.
        folder: folder of audio files, searched recursively as by `atk.data.list_folder`; or a data set in another
            layout, such as the name of tar shards (see `atk.data.open_data`).
        queries: texts to search for.
        score: similarity that ranks: see `atk.eval.scores.similarities`.
        clip_seconds: files are embedded in windows of this length, which are averaged; None = whole files.
        batch_size: windows to embed at a time.
        workers: number of processes that read audio; 0 = read in this process.
        on_error: "skip" skips and lists unreadable files; "raise" stops at the first one.
        progress: label of a progress bar; None = no bar.

    Returns:
        The files with their similarities, best first, for each query; and the skipped files.

    Raises:
        FileNotFoundError: `folder` does not exist.
        TypeError: `queries` is not a list of strings.
        ValueError: there is no query, a query is empty, or no file in the folder can be read.
        AudioError: a file cannot be read and `on_error="raise"`.
    """
    strings("queries", queries)
    if not queries or not all(query.strip() for query in queries):
        raise ValueError("query must contain at least one word, got an empty text")
    one_of("score", score, SCORES)
    options = {"clip_seconds": clip_seconds, "batch_size": batch_size, "workers": workers, "on_error": on_error}
    skipped: list[tuple[str, str]] = []
    with evaluating(model):
        texts = embed_tokens(model, queries)
    frames = () if score == "global" else ALL_FILES
    clips = embed_all(model, folder, skipped, frames=frames, progress=progress, **options)
    scored = [(clip.path, similarities([embedding], texts, score)[0].tolist()) for clip, embedding in clips]
    hits = [[(scores[row], path) for path, scores in scored] for row in range(len(queries))]
    return SearchResults([sorted(ranked, key=lambda hit: -hit[0]) for ranked in hits], skipped)
