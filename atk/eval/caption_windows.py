"""Write captions for the windows of a clip of any length, or for what they contain that reference clips do not."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from atk.data import Clip, eval_loader
from atk.eval.embed import device_of, evaluating
from atk.models.caption_model import CaptionModel
from atk.models.generation import GenerationConfig

_WINDOWS = 8  # windows of a file to encode at a time


def caption_clip(
    model: CaptionModel,
    clip: Clip,
    references: Sequence[Clip] = (),
    *,
    clip_seconds: float | None,
    beams: int = 4,
    generation: GenerationConfig | None = None,
    repeated: bool = False,
    common: bool = False,
) -> list[tuple[float, float, str]]:
    """`atk.eval.captioning.caption_file` for clips; `clip_seconds=None` captions the clip as a whole."""
    difference = model.config.difference
    if references and difference == "none":
        raise ValueError("reference: this model was trained without a Diff block and takes no references")
    for name, asked in (("repeated", repeated), ("common", common)):
        if asked and (not references or difference != "mask"):
            raise ValueError(
                f"{name}: needs references, and a model with a mask; see --reference, and --objective or "
                "--model.difference"
            )
    options: dict[str, Any] = {"repeated": repeated or common, "common": common}
    with evaluating(model), torch.no_grad():
        tracks_of = [[z for z, _ in encode_windows(model, x, clip_seconds, reference=True)] for x in references]
        silent = [x for x, windows in zip(references, tracks_of, strict=True) if not sum(map(len, windows))]
        if common and silent:
            raise ValueError(f"common: {Path(silent[0].file_name).name} is silent, so nothing is in common with it")
        captions = []
        for i, (z, seconds) in enumerate(encode_windows(model, clip, clip_seconds)):
            if difference == "subtraction":
                tracks = [windows[i] for windows in tracks_of if i < len(windows)]
            else:
                tracks = [torch.cat(windows) for windows in tracks_of]
            features = _difference(model, z, tracks, options)
            text = model.decoder.generate(*features, beams, None, generation)[0]
            start = i * (clip_seconds or 0.0)
            captions.append((start, start + seconds, text))
    return captions


def _difference(model: CaptionModel, z: Tensor, tracks: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """`Diff(z, tracks)` `[1, L, D]` of features `z [L, D]` and references `[L_ref, D]`, and its mask `[1, L]`."""
    mask = z.new_ones(1, len(z), dtype=torch.bool)
    if not tracks:
        return z[None], mask
    valid = pad_sequence([track.new_ones(len(track), dtype=torch.bool) for track in tracks], batch_first=True)
    return model.difference(z[None], pad_sequence(tracks, batch_first=True)[None], valid[None], **options), mask


def encode_windows(
    model: CaptionModel, clip: Clip, seconds: float | None, reference: bool = False
) -> Iterator[tuple[Tensor, float]]:
    """Features `[L, D]` of each window of a clip, and the length of the window in seconds.

    Those of a reference are features of what `model.trim_references` leaves of it; L is 0 if that is nothing.
    """
    loader = eval_loader(
        [clip], sample_rate=model.sample_rate, clip_seconds=seconds, batch_size=_WINDOWS, on_error="raise"
    )
    device = device_of(model)
    for batch in loader:
        audio, lengths = batch.audio.to(device), batch.lengths.to(device)
        if reference:
            audio, lengths = model.trim_references(audio, lengths)
        features = [audio.new_empty(0, model.decoder.width)] * len(audio)
        sounding = lengths.nonzero()[:, 0]
        if len(sounding):
            encoded = zip(sounding.tolist(), *model.encode(audio[sounding], lengths[sounding]), strict=True)
            for row, z, valid in encoded:
                features[row] = z[valid]
        for z, length in zip(features, batch.lengths.tolist(), strict=True):
            yield z, length / model.sample_rate
