"""Figure 3.3 of the thesis: a log-mel spectrogram above the token-by-frame similarity, with the true events."""

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from atk.align import AlignmentMap
from atk.side_files import Event

_COLOURS = ("#ff7f0e", "#e6194b", "#f032e6", "#4aa8ff", "#a0522d", "#808080")  # all stand out from the heat map


def align_figure(
    path: str | Path,
    mel: Tensor,
    alignment: AlignmentMap,
    seconds: float,
    events: Sequence[Event] = (),
    title: str = "",
) -> Path:
    """Draw Figure 3.3: the log-mel spectrogram above the heat map of words by frames, both over time in seconds.

    True events are drawn as bars above the spectrogram and as boxes around their words and times in the heat map.

    Args:
        path: PNG to write; the numbers go beside it as CSV (first column the word, then one for each frame, headed by
            the time of its centre).
        mel: log-mel spectrogram `[frames, mel bins]`.
        alignment: from `similarity_map`.
        seconds: duration of the clip.
        events: true events of this clip.
        title: stands above the picture.

    Returns:
        The path of the CSV.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    phrases = list(dict.fromkeys(event.phrase for event in events))
    heights = [0.25 * len(phrases)] * bool(phrases) + [2.2, 0.3 * max(len(alignment.words), 2)]
    figure = Figure(figsize=(10, sum(heights) + 1.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), 2, width_ratios=(1, 0.015), height_ratios=heights)
    heat = figure.add_subplot(grid[-1, 0])
    spectrogram = figure.add_subplot(grid[-2, 0], sharex=heat)
    top = figure.add_subplot(grid[0, 0], sharex=heat) if phrases else spectrogram
    extent = (0, seconds, 0, mel.shape[1])
    spectrogram.imshow(mel.cpu().T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    spectrogram.set_ylabel("mel band")
    image = _draw_heat(heat, alignment)
    figure.colorbar(image, cax=figure.add_subplot(grid[-1, 1]), label="cosine")
    for number, phrase in enumerate(phrases):
        times = [(event.start, event.end) for event in events if event.phrase == phrase]
        _draw_event(top, heat, number, times, alignment.rows_of(phrase))
    if phrases:
        top.set_yticks(range(len(phrases)), phrases, parse_math=False)
        top.set_ylim(len(phrases) - 0.5, -0.5)
        top.spines[:].set_visible(False)
    for axes in {top, spectrogram}:
        axes.tick_params(bottom=False, labelbottom=False, left=axes is spectrogram)
    heat.set_xlim(0, seconds)
    figure.suptitle(textwrap.fill(title, 110), fontsize="medium", parse_math=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return _write_csv(path.with_suffix(".csv"), alignment)


def _draw_heat(axes, alignment: AlignmentMap):
    half = alignment.frame_seconds / 2
    times = alignment.times
    edges = torch.cat([times[:1] - half, (times[:-1] + times[1:]) / 2, times[-1:] + half])
    rows = torch.arange(len(alignment.words) + 1) - 0.5
    image = axes.pcolormesh(edges.numpy(), rows.numpy(), alignment.similarity.numpy(), cmap="viridis")
    axes.set_yticks(range(len(alignment.words)), alignment.words, parse_math=False)
    axes.set_ylim(len(alignment.words) - 0.5, -0.5)
    axes.tick_params(left=False)
    axes.set_xlabel("time (s)")
    return image


def _draw_event(top, heat, number: int, times: Sequence[tuple[float, float]], rows: Sequence[int]) -> None:
    """Bars of one phrase in row `number` of `top`, boxes around its words `rows` in `heat`."""
    from matplotlib.patches import Rectangle

    colour = _COLOURS[number % len(_COLOURS)]
    starts, lengths = [start for start, _ in times], [end - start for start, end in times]
    top.barh([number] * len(times), lengths, 0.6, starts, color=colour)
    for start, length in zip(starts, lengths, strict=True):
        for first, last in _runs(rows):
            for line in ({"edgecolor": "white", "linewidth": 3.5}, {"edgecolor": colour, "linewidth": 2}):
                heat.add_patch(Rectangle((start, first - 0.46), length, last - first + 0.92, fill=False, **line))


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    firsts = [row for row in rows if row - 1 not in rows]
    lasts = [row for row in rows if row + 1 not in rows]
    return list(zip(firsts, lasts, strict=True))


def _write_csv(path: Path, alignment: AlignmentMap) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["word", *(f"{time:.3f}" for time in alignment.times.tolist())])
        for word, values in zip(alignment.words, alignment.similarity.tolist(), strict=True):
            table.writerow([word, *(f"{value:.6f}" for value in values)])
    return path
