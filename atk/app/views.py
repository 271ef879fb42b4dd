"""What is shown of a result: its sound, and its spectrogram above the map of words by frames."""

import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from atk.app.searching import Answer, Hit
from atk.data import audio_info, load_audio
from atk.data.side_files import Event
from atk.eval.alignment import AlignmentMap, similarity_map
from atk.eval.embed import ClipEmbedding, EmbeddingModel, device_of, evaluating
from atk.eval.figures import draw_alignment
from atk.eval.index import Index
from atk.extras import optional_imports

AROUND = 4.0  # seconds shown on each side of a moment
LONGEST = 30.0  # seconds shown


class View(NamedTuple):
    """A stretch of a recording.

    Attributes:
        title: what is shown.
        picture: PNG, with the spectrogram above the map.
        sound: FLAC, mono, at the sample rate of the model.
        start, seconds: the stretch.
        moment: where playing begins, in seconds from the start of the recording.
        left, right: edges of the time axis in the picture, as fractions of its width.
    """

    title: str
    picture: bytes
    sound: bytes
    start: float
    seconds: float
    moment: float
    left: float
    right: float


def view_of(index: Index, model: EmbeddingModel, answer: Answer, hit: Hit) -> View:
    """Show a result of a search.

    Raises:
        AudioError: the recording cannot be read any more.
        ValueError: it lies inside a larger file, or outside of the folder that was searched.
    """
    path = checked(hit.path, Path(index.header.folder))
    moment = hit.moment
    start = max(0.0, moment.start - AROUND)
    end = moment.end + AROUND if moment.parts else LONGEST
    seconds = min(end, start + LONGEST, audio_info(path).seconds) - start
    wave = load_audio(path, model.sample_rate, start, seconds, notes=[])
    title = hit.name
    if moment.parts:
        title += f", {moment.start:.2f}-{moment.end:.2f} s"
    frames, times = index.frames(hit.path)
    near = (times >= start) & (times <= start + seconds)
    alignment = _map(model, ClipEmbedding(frames[:0], frames[near], times[near]), answer.phrases)
    events = [
        Event(hit.name, phrase, phrase, part.start, part.end)
        for phrase, part in zip(answer.phrases, moment.parts, strict=False)
    ]
    picture, left, right = _picture(log_mel(model, wave), alignment, start, seconds, events)
    return View(title, picture, flac(wave, model.sample_rate), start, seconds, moment.start, left, right)


def checked(path: Path | str, folder: Path) -> Path:
    """The path of a recording, which must lie in the folder that was searched, also after links are followed.

    Raises:
        ValueError: it does not, or is no file of its own.
    """
    if isinstance(path, str):
        raise ValueError(f"{Path(path).name} lies inside a larger file, which the page cannot play")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path.name} is a link to a file outside of the folder, which the page does not play")
    return path


def _map(model: EmbeddingModel, clip: ClipEmbedding, phrases: tuple[str, ...]) -> AlignmentMap:
    """The map of all phrases, each embedded by itself, as in the search."""
    maps = [similarity_map(model, clip, phrase) for phrase in phrases]
    return AlignmentMap(
        [word for one in maps for word in one.words],
        torch.cat([one.similarity for one in maps]),
        clip.times,
        model.frame_seconds,
        [span for one in maps for span in one.spans],
    )


def log_mel(model: EmbeddingModel, wave: Tensor) -> Tensor:
    """The log-mel spectrogram `[frames, mel_bins]` of a waveform `[S]`."""
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        return model.log_mel(wave[None].to(device), torch.tensor([len(wave)], device=device))[0].cpu()


def flac(wave: Tensor, sample_rate: int) -> bytes:
    """A waveform `[S]` as a FLAC file, which every browser plays."""
    with optional_imports:
        import soundfile

    content = io.BytesIO()
    soundfile.write(content, wave.clamp(-1, 1).numpy(), sample_rate, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def _picture(
    mel: Tensor, alignment: AlignmentMap, start: float, seconds: float, events: list[Event]
) -> tuple[bytes, float, float]:
    """The PNG, and the edges of the time axis in it as fractions of its width."""
    figure, heat = draw_alignment(mel, alignment, start, seconds, events)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    box = heat.get_position()
    return content.getvalue(), float(box.x0), float(box.x1)
