"""The end of `make demo`: a held-out scene's alignment map, moments in two minutes, retrieval, and the op."""

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from atk.bench import compare, markdown, max_mean_similarity, sizes
from atk.data.captions import Clip, read_split
from atk.data.side_files import Event, read_events
from atk.eval.figures import align
from atk.eval.long_audio import FrameStream
from atk.eval.moment_evaluation import calibrate, curves_of, queries_of, with_absent
from atk.eval.moment_figure import draw_moment
from atk.eval.moment_search import search_moments
from atk.eval.moments import overlap_of
from atk.models.clap import CLAP
from moments import by_scene, compose


def in_sequence(events: Iterable[Event]) -> list[Event]:
    """The events of a scene in the order of time; none if some overlap, or if there are fewer than two."""
    ordered = sorted(events, key=lambda event: event.start)
    overlap = any(first.end > second.start for first, second in itertools.pairwise(ordered))
    return [] if overlap or len(ordered) < 2 else ordered


def sequences(scenes: Path, clips: Sequence[Clip], seconds: float) -> list[list[Event]]:
    """The sequences of sounds of the clips that fill a recording, with the times at which they sound in it."""
    events, start, parts = by_scene(scenes), 0.0, []
    for clip in clips:
        if start + clip.seconds > seconds:
            break
        parts.append(
            [
                event._replace(start=start + event.start, end=start + event.end)
                for event in in_sequence(events.get(clip.file_name, ()))
            ]
        )
        start += clip.seconds
    return [sequence for sequence in parts if sequence]


def find_moments(model: CLAP, scenes: Path, picture: Path) -> str:
    """Join held-out scenes to two minutes, look for the sequence of sounds of each scene, and draw the best answer.

    The best answer is the one with the highest score. The threshold is chosen on forty other scenes.
    """
    clips, events = read_split(scenes, "test").clips, read_events(scenes / "events.csv")
    queries, _ = queries_of(events, clips[-40:])
    stream = FrameStream(model, clips[-40:], 6.0, batch_size=16)
    config, _ = calibrate(curves_of(model, stream, with_absent(queries)), model.frame_seconds)
    recording = picture.with_suffix(".wav")
    sounds = compose(scenes, clips, recording, 120)
    wanted = sequences(scenes, clips, 120)
    texts = [", then ".join(event.phrase for event in sequence) for sequence in wanted]
    best = search_moments(model, recording, texts, config=config, top=1, around=120.0, clip_seconds=6.0).hits
    answers = []
    for text, sequence, hits in zip(texts, wanted, best, strict=True):
        for hit in hits:
            truth = (sequence[0].start, sequence[-1].end)
            answers.append((hit.moment.score, overlap_of(hit.moment, truth), hit, sequence, text))
    right = sum(overlap >= 0.5 for _, overlap, *_ in answers)
    _, _, hit, sequence, text = max(answers, key=lambda answer: answer[0])
    classes = {event.event for event in sequence}
    shown = [event._replace(phrase=event.event) for event in sounds if event.event in classes]
    draw_moment(picture, model, hit, [event.phrase for event in sequence], text, shown)
    return (
        f"{recording}: for {right} of {len(wanted)} sequences of sounds, the best moment has an intersection over "
        f"union of at least 0.5 with the true one. The one with the highest score:\n{picture}: {text}: "
        f"found at {hit.moment.start:.2f}-{hit.moment.end:.2f} s "
        f"(truth: {sequence[0].start:.2f}-{sequence[-1].end:.2f} s)"
    )


def retrieval_table(metrics: dict) -> str:
    """Table of held-out retrieval and of what a random order would give."""
    names = list(metrics["chance"]["text_to_audio"])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for direction in ("text_to_audio", "audio_to_text"):
        for label, values in ((direction, metrics[direction]), ("  chance", metrics["chance"][direction])):
            lines.append(f"| {label} | " + " | ".join(f"{values[name]:.1f}" for name in names) + " |")
    alignment = metrics["alignment"]
    return "\n".join(lines) + (
        f"\n\n{metrics['clips']} held-out scenes. The best frame for an event's words is inside that event for "
        f"{alignment['right']:.0f} % of {alignment['phrases']} phrases (chance: {alignment['chance']:.0f} %)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("scenes", type=Path, help="folder of the soundscapes that the model was trained on")
    arguments = parser.parse_args()
    events = by_scene(arguments.scenes)
    clips = read_split(arguments.scenes, "test").clips
    clip = max(clips, key=lambda clip: len(in_sequence(events[clip.file_name])))  # its map is the easiest to read
    picture = arguments.run / "align.png"
    model = CLAP.from_pretrained(arguments.run)
    align(model, str(clip.path), clip.captions[0], picture)
    moment = find_moments(model, arguments.scenes, arguments.run / "moment.png")
    torch.manual_seed(0)
    shape = sizes.PAIRS["batch_128"]
    case = max_mean_similarity.case(shape, "step", torch.float32, torch.device("cpu"))
    case = replace(
        case, providers=[provider for provider in case.providers if provider.name in ("naive einsum", "atk cpp")]
    )
    print("\nRetrieval\n" + retrieval_table(json.loads((arguments.run / "summary.json").read_text())["metrics"]))
    print("\n" + markdown(case.title, compare(case, rounds=3)))
    print(f"{picture}: {clip.captions[0]}\n\nMoments\n{moment}")


if __name__ == "__main__":
    main()
