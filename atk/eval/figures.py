"""The alignment figure: a log-mel spectrogram above the token-by-frame similarity, with the true events."""

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from atk.data import Clip, audio_info, eval_loader, load_audio
from atk.data.side_files import Event, find_events
from atk.eval.alignment import AlignmentMap, similarity_map
from atk.eval.embed import EmbeddingModel, device_of, embed_clips, evaluating
from atk.eval.outputs import check_output, in_unicode
from atk.extras import optional_imports

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

_COLORS = ("#ff7f0e", "#e6194b", "#f032e6", "#4aa8ff", "#a0522d", "#808080")  # all contrast with the heat map


def align_figure(
    path: str | Path,
    mel: Tensor,
    alignment: AlignmentMap,
    seconds: float,
    events: Sequence[Event] = (),
    title: str = "",
) -> Path:
    """Draw a log-mel spectrogram above the heat map of words by frames, both over time (thesis Figure 3.3).

    True events are bars above the spectrogram and boxes around their words and times in the heat map.

    Args:
        path: PNG to write. The similarities are written next to it as CSV: a row per word, a column per frame, with
            the center of the frame in seconds as header.
        mel: log-mel spectrogram `[frames, mel_bins]`.
        alignment: output of `similarity_map`.
        seconds: duration of the clip.
        events: true events of the clip.
        title: title of the figure.

    Returns:
        The path of the CSV.
    """
    figure, _ = draw_alignment(mel, alignment, 0.0, seconds, events, title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")
    return _write_csv(path.with_suffix(".csv"), alignment)


def draw_alignment(
    mel: Tensor,
    alignment: AlignmentMap,
    start: float,
    seconds: float,
    events: Sequence[Event] = (),
    title: str = "",
) -> tuple["Figure", "Axes"]:
    """The figure of `align_figure` for a stretch of a recording, from `start` on, and the axes of its heat map."""
    phrases = list(dict.fromkeys(event.phrase for event in events))
    heights = [0.25 * len(phrases)] * bool(phrases) + [2.2, 0.3 * max(len(alignment.words), 2)]
    figure = new_figure(10, sum(heights) + 1.0)
    grid = figure.add_gridspec(len(heights), 2, width_ratios=(1, 0.015), height_ratios=heights)
    heat = figure.add_subplot(grid[-1, 0])
    spectrogram = figure.add_subplot(grid[-2, 0], sharex=heat)
    top = figure.add_subplot(grid[0, 0], sharex=heat) if phrases else spectrogram
    extent = (start, start + seconds, 0, mel.shape[1])
    spectrogram.imshow(mel.cpu().T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=extent)
    spectrogram.set_ylabel("mel band")
    image = _draw_heat_map(heat, alignment)
    figure.colorbar(image, cax=figure.add_subplot(grid[-1, 1]), label="cosine")
    for row, phrase in enumerate(phrases):
        times = [(event.start, event.end) for event in events if event.phrase == phrase]
        _draw_event(top, heat, row, times, alignment.rows_of(phrase))
    if phrases:
        top.set_yticks(range(len(phrases)), phrases, parse_math=False)
        top.set_ylim(len(phrases) - 0.5, -0.5)
        top.spines[:].set_visible(False)
    for axes in {top, spectrogram}:
        axes.tick_params(bottom=False, labelbottom=False, left=axes is spectrogram)
    heat.set_xlim(start, start + seconds)
    figure.suptitle(picture_title(title), fontsize="medium", parse_math=False)
    return figure, heat


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, which needs no display."""
    with optional_imports:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def picture_title(text: str) -> str:
    """A title in lines that fit a figure, on which file names that are not UTF-8 can be drawn."""
    return textwrap.fill(in_unicode(text), 110)


def _draw_heat_map(axes: "Axes", alignment: AlignmentMap) -> "QuadMesh":
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


def _draw_event(
    top: "Axes", heat: "Axes", row: int, times: Sequence[tuple[float, float]], words: Sequence[int]
) -> None:
    """Draw the (start, end) `times` of a phrase as bars in row `row` of `top`, and as boxes around its `words` rows in
    `heat`."""
    from matplotlib.patches import Rectangle

    color = _COLORS[row % len(_COLORS)]
    starts = [start for start, _ in times]
    lengths = [end - start for start, end in times]
    top.barh([row] * len(times), lengths, 0.6, starts, color=color)
    for start, length in zip(starts, lengths, strict=True):
        for first, last in _runs(words):
            corner = (start, first - 0.46)
            for edge_color, width in (("white", 3.5), (color, 2.0)):  # a white outline around the colored box
                box = Rectangle(corner, length, last - first + 0.92, fill=False, edgecolor=edge_color, linewidth=width)
                heat.add_patch(box)


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """First and last row of each run of consecutive rows."""
    firsts = [row for row in rows if row - 1 not in rows]
    lasts = [row for row in rows if row + 1 not in rows]
    return list(zip(firsts, lasts, strict=True))


def _check_out(path: str | Path) -> None:
    if Path(path).suffix.lower() == ".csv":
        raise ValueError(f"out: {path} names the CSV; give the name of the picture")
    check_output(path, b"\x89PNG", "a PNG picture")
    check_output(Path(path).with_suffix(".csv"), b"word,", "an alignment")


def _write_csv(path: Path, alignment: AlignmentMap) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["word", *(f"{time:.3f}" for time in alignment.times.tolist())])
        for word, values in zip(alignment.words, alignment.similarity.tolist(), strict=True):
            table.writerow([word, *(f"{value:.6f}" for value in values)])
    return path


def align(
    model: EmbeddingModel,
    audio: str | Path,
    text: str | Sequence[str],
    out: str | Path = "align.png",
    *,
    events: str | Path | None = None,
    clip_seconds: float | None = 9.91,
    longest: float = 60.0,
) -> AlignmentMap:
    """Compute and draw the similarity of an audio file's frames and the words of `text`; see `align_figure`.

    Args:
        model: embeds the audio and the text.
        audio: audio file.
        text: a caption, or a list of words or phrases with one row each.
        out: PNG to write, with a CSV of the same name next to it.
        events: events.csv with the true events; None = the nearest one in the parent folders of the file, if any.
        clip_seconds: the file is embedded in windows of this length; None = as a whole.
        longest: seconds of the file to use, from its start.

    Raises:
        AudioError: the file cannot be read.
        ValueError: `text` contains no word, `events` is malformed or does not list the file, `out` exists and is not a
            PNG, or the CSV exists and is not an alignment.
    """
    _check_out(out)
    true_events = find_events(audio, events)
    seconds = min(audio_info(audio).seconds, longest)
    clip = Clip(str(audio), Path(audio), (), seconds)
    loader = eval_loader(
        [clip], sample_rate=model.sample_rate, clip_seconds=clip_seconds, batch_size=1, on_error="raise"
    )
    with evaluating(model), torch.no_grad():
        [(_, embedding)] = embed_clips(model, loader, [], {str(audio)})
        used = embedding.times < seconds + model.frame_seconds / 2  # the last window may end after `longest`
        embedding = embedding._replace(frames=embedding.frames[used], times=embedding.times[used])
        wave = load_audio(audio, model.sample_rate, 0.0, seconds, notes=[])[None]  # the loader has issued the notes
        device = device_of(model)
        mel = model.log_mel(wave.to(device), torch.tensor([wave.shape[1]], device=device))[0]
    alignment = similarity_map(model, embedding, text)
    title = f"{in_unicode(Path(audio).name)}: {text if isinstance(text, str) else ', '.join(text)}"
    align_figure(out, mel, alignment, seconds, true_events, title)
    return alignment
