"""Captions of a clip and a reference: of each, of what only the clip has, and of what both have."""

from collections.abc import Callable
from typing import Any

from atk.app.library import check_length
from atk.data.audio import AudioError
from atk.eval.caption_listing import window_lines
from atk.eval.captioning import caption_file
from atk.models.caption_model import CaptionModel


def four_captions(
    model: CaptionModel, clip: str | None, reference: str | None, clip_seconds: float, options: dict[str, Any]
) -> list[list[str]]:
    """Caption a clip, and a reference if there is one.

    Args:
        model: the captioner.
        clip, reference: audio files.
        clip_seconds: length of a window.
        options: `beams` and `generation` of `caption_file`.

    Returns:
        Rows of (what is described, its caption). Where the model cannot tell, the caption is the reason, in brackets.

    Raises:
        ValueError: there is no clip, or a file is too long.
        AudioError: a file cannot be used.
    """
    if clip is None:
        raise ValueError("drop a clip to caption first")
    files = [clip] if reference is None else [clip, reference]
    for file in files:
        check_length(file)

    def captions(audio: str, *references: str, common: bool = False) -> str:
        given = caption_file(model, audio, references, clip_seconds=clip_seconds, common=common, **options)
        return window_lines(given)

    rows = [["clip", captions(clip)]]
    if reference is not None:
        rows.append(["reference", captions(reference)])
        rows.append(["clip without the sounds of the reference", _or_reason(lambda: captions(clip, reference))])
        rows.append(["what both have in common", _or_reason(lambda: captions(clip, reference, common=True))])
    return rows


def _or_reason(caption: Callable[[], str]) -> str:
    try:
        return caption()
    except AudioError:
        raise
    except ValueError as error:
        return f"[{error}]"
