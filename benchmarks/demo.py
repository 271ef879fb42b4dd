"""The end of `make demo`: a held-out scene's alignment map, retrieval against chance, and the op against the einsum."""

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
from atk.models.clap import CLAP


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
    align(CLAP.from_pretrained(arguments.run), str(clip.path), clip.captions[0], picture)
    torch.manual_seed(0)
    shape = sizes.PAIRS["batch_128"]
    case = max_mean_similarity.case(shape, "step", torch.float32, torch.device("cpu"))
    case = replace(
        case, providers=[provider for provider in case.providers if provider.name in ("naive einsum", "atk cpp")]
    )
    print("\nRetrieval\n" + retrieval_table(json.loads((arguments.run / "summary.json").read_text())["metrics"]))
    print("\n" + markdown(case.title, compare(case, rounds=3)))
    print(f"{picture}: {clip.captions[0]}")


if __name__ == "__main__":
    main()
