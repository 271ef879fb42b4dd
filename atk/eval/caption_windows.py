"""Write captions for the windows of a clip of any length, or for what they contain that reference clips do not."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from atk.data import Clip, eval_loader
from atk.eval.embed import device_of, evaluating
from atk.models.caption_model import CaptionModel

_WINDOWS = 8  # windows of a file to encode at a time


def caption_clip(
    model: CaptionModel, clip: Clip, references: Sequence[Clip] = (), *, clip_seconds: float | None, beams: int
) -> list[tuple[float, float, str]]:
    """`atk.eval.captioning.caption_file` for clips; `clip_seconds=None` captions the clip as a whole."""
    if references and model.difference_block is None:
        raise ValueError("reference: this model was trained without a Diff block and takes no references")
    with evaluating(model), torch.no_grad():
        tracks_of = [[z for z, _ in _encode_windows(model, reference, clip_seconds)] for reference in references]
        all_windows = [z for windows in tracks_of for z in windows]
        captions = []
        for i, (z, seconds) in enumerate(_encode_windows(model, clip, clip_seconds)):
            tracks = all_windows
            if model.config.difference == "subtraction":
                tracks = [windows[i] for windows in tracks_of if i < len(windows)]
            text = model.decoder.generate(*_difference(model, z, tracks), beams, None)[0]
            start = i * (clip_seconds or 0.0)
            captions.append((start, start + seconds, text))
    return captions


def _difference(model: CaptionModel, z: Tensor, tracks: list[Tensor]) -> tuple[Tensor, Tensor]:
    """`Diff(z, tracks)` `[1, L, D]` of features `z [L, D]` and references `[L_ref, D]`, and its mask `[1, L]`."""
    mask = z.new_ones(1, len(z), dtype=torch.bool)
    if not tracks:
        return z[None], mask
    valid = pad_sequence([track.new_ones(len(track), dtype=torch.bool) for track in tracks], batch_first=True)
    return model.difference(z[None], pad_sequence(tracks, batch_first=True)[None], valid[None]), mask


def _encode_windows(model: CaptionModel, clip: Clip, seconds: float | None) -> Iterator[tuple[Tensor, float]]:
    """Features `[L, D]` of each window of a clip, and the length of the window in seconds."""
    loader = eval_loader(
        [clip], sample_rate=model.sample_rate, clip_seconds=seconds, batch_size=_WINDOWS, on_error="raise"
    )
    device = device_of(model)
    for batch in loader:
        features, mask = model.encode(batch.audio.to(device), batch.lengths.to(device))
        for z, valid, length in zip(features, mask, batch.lengths.tolist(), strict=True):
            yield z[valid], length / model.sample_rate
