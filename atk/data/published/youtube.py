"""Names under which downloaders save a clip of a video."""

from collections.abc import Iterator


def youtube_names(video: str, start: float | None = None, end: float | None = None) -> Iterator[str]:
    """The names that the audio of a clip may have, without suffixes; those that contain the times come first.

    Args:
        video: identifier of the video.
        start: start of the clip in seconds; None if unknown.
        end: end of the clip in seconds; None if unknown.
    """
    for prefix in ("", "Y"):
        if start is not None and end is not None:
            yield f"{prefix}{video}_{round(1000 * start)}_{round(1000 * end)}"
            yield f"{prefix}{video}_{start:.3f}_{end:.3f}"
            yield f"{prefix}{video}_{start:g}_{end:g}"
        if start is not None:
            yield f"{prefix}{video}_{start:g}"
            yield f"{prefix}{video}_{round(1000 * start)}"
    yield f"Y{video}"
    yield video
