"""Ranking the audio files of any folder for a text query."""

from pathlib import Path
from typing import NamedTuple

from torch import nn

from atk.data import eval_loader, read_folder
from atk.eval.embed import embed_captions, embed_clips, evaluating


class SearchResult(NamedTuple):
    """`hits`: (cosine, path) of every readable file, best first; `skipped`: (file name, reason) of the others."""

    hits: list[tuple[float, Path]]
    skipped: list[tuple[str, str]]


def search(
    model: nn.Module,
    folder: str | Path,
    query: str,
    *,
    clip_seconds: float | None = 9.91,
    batch_size: int = 32,
    workers: int = 0,
    on_error: str = "skip",
    progress: str | None = None,
) -> SearchResult:
    """Rank the audio files below a folder by the global cosine of clip and query.

    Args:
        model: gives `embed_audio`, `embed_text` and `sample_rate`.
        folder: searched recursively for wav, flac, ogg, oga and mp3 files.
        query: what to look for.
        clip_seconds: files are embedded in windows of this length, which are averaged; None takes each file whole.
        batch_size: windows embedded at a time.
        workers: processes that read audio; 0 = in this one.
        on_error: "skip" passes over files that cannot be read and names them, "raise" stops at the first.
        progress: label of a progress bar, None for none.

    Returns:
        The files and their cosines, best first, and what was passed over.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: `query` is empty, or no file of the folder can be read.
        AudioError: with `on_error="raise"`, a file cannot be read.
    """
    if not query.strip():
        raise ValueError("query must hold at least one word, got an empty text")
    found = read_folder(folder, on_error)
    options = {"clip_seconds": clip_seconds, "batch_size": batch_size, "workers": workers, "on_error": on_error}
    loader = eval_loader(found.clips, sample_rate=model.sample_rate, **options)
    skipped = list(found.skipped)
    with evaluating(model):
        text = embed_captions(model, [query])[0]
        clips = embed_clips(model, loader, skipped, progress=progress)
        hits = [(float(embedded.pooled @ text), clip.path) for clip, embedded in clips]
    if not hits:
        raise ValueError(f"{folder}: none of its {len(found.clips)} audio files can be decoded")
    return SearchResult(sorted(hits, key=lambda hit: -hit[0]), skipped)
