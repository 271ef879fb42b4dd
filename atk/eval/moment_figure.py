"""The picture of a moment: a log-mel spectrogram above the curves of the phrases, with the spans that were found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atk.data import load_audio
from atk.data.side_files import Event
from atk.eval.embed import EmbeddingModel, device_of, evaluating
from atk.eval.figures import new_figure, picture_title
from atk.eval.moment_search import MomentHit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd")
_LONGEST = 300.0  # seconds drawn


def draw_moment(
    path: str | Path,
    model: EmbeddingModel,
    hit: MomentHit,
    phrases: Sequence[str],
    query: str,
    events: Sequence[Event] = (),
) -> Path:
    """Draw a moment and the seconds around it.

    Args:
        path: PNG to write; an existing one is replaced.
        model: its log-mel spectrogram is drawn.
        hit: the moment.
        phrases: the phrase of each part of the moment.
        query: title of the picture.
        events: true events of the recording, drawn as bars above the spectrogram.

    Returns:
        The path of the picture.

    Raises:
        AudioError: the recording cannot be read.
    """
    half = model.frame_seconds / 2
    start = max(0.0, float(hit.times[0]) - half)
    seconds = min(float(hit.times[-1]) + half - start, _LONGEST)
    wave = load_audio(hit.path, model.sample_rate, start, seconds, notes=[])[None]
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        mel = model.log_mel(wave.to(device), torch.tensor([wave.shape[1]], device=device))[0].cpu()
    shown = [event for event in events if event.end > start and event.start < start + seconds]
    figure = new_figure(10, 5)
    grid = figure.add_gridspec(3 if shown else 2, 1, height_ratios=[0.5] * bool(shown) + [1.4, 1])
    curves = figure.add_subplot(grid[-1])
    spectrogram = figure.add_subplot(grid[-2], sharex=curves)
    spectrogram.imshow(
        mel.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(start, start + seconds, 0, mel.shape[1])
    )
    spectrogram.set_ylabel("mel band")
    spectrogram.tick_params(labelbottom=False)
    _draw_curves(curves, hit, phrases)
    if shown:
        _draw_events(figure.add_subplot(grid[0], sharex=curves), shown)
    curves.set_xlim(start, start + seconds)
    moment = hit.moment
    figure.suptitle(
        picture_title(f"{Path(str(hit.path)).name}, {moment.start:.2f}-{moment.end:.2f} s: {query}"),
        fontsize="medium",
        parse_math=False,
    )
    path = Path(path)
    figure.savefig(path, format="png")
    return path


def _draw_curves(axes: "Axes", hit: MomentHit, phrases: Sequence[str]) -> None:
    curves: list[Tensor] = list(hit.curves.unbind())
    for index, (curve, phrase, part) in enumerate(zip(curves, phrases, hit.moment.parts, strict=True)):
        color = _COLORS[index % len(_COLORS)]
        axes.plot(hit.times.numpy(), curve.numpy(), color=color, label=phrase, linewidth=1)
        axes.axvspan(part.start, part.end, color=color, alpha=0.25)
    legend = axes.legend(loc="upper right", fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)
    axes.set_ylabel("cosine")
    axes.set_xlabel("time (s)")


def _draw_events(axes: "Axes", events: Sequence[Event]) -> None:
    names = list(dict.fromkeys(event.phrase for event in events))
    for event in events:
        axes.barh(names.index(event.phrase), event.end - event.start, 0.6, event.start, color="#606060")
    axes.set_yticks(range(len(names)), names, fontsize="x-small", parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)
