"""Rank the audio files of a folder, or of any data set, by their similarity to a text query."""

from pathlib import Path
from typing import NamedTuple

from atk.data import eval_loader
from atk.data.captions import OnError
from atk.data.containers import Stored
from atk.data.sets import read_all
from atk.eval.embed import EmbeddingModel, embed_captions, embed_clips, evaluating


class SearchResult(NamedTuple):
    """`hits`: (cosine, path) of every readable file, best first; `skipped`: (file name, reason) of the others."""

    hits: list[tuple[float, Path | Stored]]
    skipped: list[tuple[str, str]]


def search(
    model: EmbeddingModel,
    folder: str | Path,
    query: str,
    *,
    clip_seconds: float | None = 9.91,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    progress: str | None = None,
) -> SearchResult:
    """Rank the audio files in a folder by the cosine similarity of clip and query.

    Args:
        model: embeds the clips and the query.
        folder: folder of audio files, searched recursively as by `atk.data.list_folder`; or a data set in another
            layout, such as the name of tar shards (see `atk.data.open_data`).
        query: text to search for.
        clip_seconds: files are embedded in windows of this length, which are averaged; None = whole files.
        batch_size: windows to embed at a time.
        workers: number of processes that read audio; 0 = read in this process.
        on_error: "skip" skips and lists unreadable files; "raise" stops at the first one.
        progress: label of a progress bar; None = no bar.

    Returns:
        The files with their cosines, best first, and the skipped files.

    Raises:
        FileNotFoundError: `folder` does not exist.
        ValueError: `query` is empty, or no file in the folder can be read.
        AudioError: a file cannot be read and `on_error="raise"`.
    """
    if not query.strip():
        raise ValueError("query must contain at least one word, got an empty text")
    files = read_all(folder, on_error)
    loader = eval_loader(
        files.clips,
        sample_rate=model.sample_rate,
        clip_seconds=clip_seconds,
        batch_size=batch_size,
        workers=workers,
        on_error=on_error,
    )
    skipped = list(files.skipped)
    with evaluating(model):
        text = embed_captions(model, [query])[0]
        clips = embed_clips(model, loader, skipped, progress=progress)
        hits = [(float(embedding.pooled @ text), clip.path) for clip, embedding in clips]
    if not hits:
        raise ValueError(f"{folder}: none of its {len(skipped)} audio files can be decoded")
    return SearchResult(sorted(hits, key=lambda hit: -hit[0]), skipped)
