"""Where a model to use comes from: whether it is an index, and how the model takes long clips."""

from pathlib import Path
from typing import Literal, get_args

from torch import nn

from atk.models.htsat import HTSAT
from atk.models.saved import run_settings
from atk.ops.checks import one_of

LongClips = Literal["windows", "crop", "fusion"]
LONG_CLIPS = get_args(LongClips)
INDEX_LIST = "atk_index.json"  # the list of the parts of an index, in its folder
_CLIP_SECONDS = 9.91  # as in training, unless the run says otherwise


def window_seconds(
    source: str | Path, model: nn.Module, long_clips: LongClips = "windows", clip_seconds: float | None = None
) -> float | None:
    """Set a model up for long clips, and say how long the windows are that clips are cut into.

    Args:
        source: where the model was loaded from.
        model: the model.
        long_clips, clip_seconds: as in `atk.load`.

    Returns:
        The length in seconds: `clip_seconds`, else as in the run, else the model's longest. None = whole clips.

    Raises:
        ValueError: the model has no such choice, or `clip_seconds` is given although clips are not cut into windows.
    """
    one_of("long_clips", long_clips, LONG_CLIPS)
    encoder = getattr(model, "audio_encoder", None)
    if long_clips != "windows":
        if not isinstance(encoder, HTSAT):
            raise ValueError(f"long_clips: this model takes clips of any length whole, got {long_clips!r}")
        if clip_seconds is not None:
            raise ValueError(f"clip_seconds: only windows have a length, got {clip_seconds} with {long_clips!r}")
        encoder.use_long_clips(long_clips)
        return None
    if clip_seconds is not None:
        return clip_seconds
    longest = encoder.longest_seconds if isinstance(encoder, HTSAT) else _CLIP_SECONDS
    return run_settings(source).get("clip_seconds", longest)


def is_index(path: str | Path) -> bool:
    """Whether a path is the folder of an index (see `atk.eval.index.Index`)."""
    return (Path(path) / INDEX_LIST).is_file()
