"""The end of `make demo`: a held-out scene's alignment map, a moment in two minutes, retrieval, and the op."""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import torch

from atk.bench import compare, markdown, max_mean_similarity, sizes
from atk.data.captions import Clip, read_split
from atk.data.side_files import read_events
from atk.eval.figures import align
from atk.eval.long_audio import FrameStream
from atk.eval.moment_evaluation import calibrate, curves_of, queries_of, with_absent
from atk.eval.moment_figure import draw_moment
from atk.eval.moment_search import search_moments
from atk.models.clap import CLAP
from moments import compose


def scene_in_sequence(scenes: Path) -> Clip:
    """The held-out scene with the most events and no overlap, whose map is the easiest to read."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for event in read_events(scenes / "events.csv"):
        spans.setdefault(event.file_name, []).append((event.start, event.end))

    def separate_events(clip: Clip) -> int:
        events = sorted(spans[clip.file_name])
        overlap = any(first[1] > second[0] for first, second in itertools.pairwise(events))
        return 0 if overlap else len(events)

    return max(read_split(scenes, "test").clips, key=separate_events)


def find_moment(model: CLAP, scenes: Path, clip: Clip, picture: Path) -> str:
    """Join held-out scenes to two minutes, look in them for the sequence of sounds of one scene, and draw it.

    The threshold is chosen on forty other scenes.
    """
    others = [other for other in read_split(scenes, "test").clips[40:] if other.file_name != clip.file_name]
    queries, _ = queries_of(read_events(scenes / "events.csv"), others[-40:])
    stream = FrameStream(model, others[-40:], 6.0, batch_size=16)
    config, _ = calibrate(curves_of(model, stream, with_absent(queries)), model.frame_seconds)
    recording = picture.with_suffix(".wav")
    events = compose(scenes, [*others[:12], clip, *others[12:]], recording, 120)
    start = sum(other.seconds for other in others[:12])
    wanted = sorted(event for event in read_events(scenes / "events.csv") if event.file_name == clip.file_name)
    wanted.sort(key=lambda event: event.start)
    query = ", then ".join(event.phrase for event in wanted)
    truth = f"{start + wanted[0].start:.2f}-{start + wanted[-1].end:.2f} s"
    [hits] = search_moments(model, recording, [query], config=config, top=1, around=120.0, clip_seconds=6.0).hits
    if not hits:
        return f"nothing found for: {query} (truth: {truth})"
    classes = {event.event for event in wanted}
    shown = [event._replace(phrase=event.event) for event in events if event.event in classes]
    draw_moment(picture, model, hits[0], [event.phrase for event in wanted], query, shown)
    moment = hits[0].moment
    return f"{picture}: {query}: found at {moment.start:.2f}-{moment.end:.2f} s (truth: {truth}) of {recording}"


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
    clip = scene_in_sequence(arguments.scenes)
    picture = arguments.run / "align.png"
    model = CLAP.from_pretrained(arguments.run)
    align(model, str(clip.path), clip.captions[0], picture)
    moment = find_moment(model, arguments.scenes, clip, arguments.run / "moment.png")
    torch.manual_seed(0)
    shape = sizes.PAIRS["batch_128"]
    case = max_mean_similarity.case(shape, "step", torch.float32, torch.device("cpu"))
    case = replace(
        case, providers=[provider for provider in case.providers if provider.name in ("naive einsum", "atk cpp")]
    )
    print("\nRetrieval\n" + retrieval_table(json.loads((arguments.run / "summary.json").read_text())["metrics"]))
    print("\n" + markdown(case.title, compare(case, rounds=3)))
    print(f"{picture}: {clip.captions[0]}\n{moment}")


if __name__ == "__main__":
    main()
