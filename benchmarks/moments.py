"""Moments in composed recordings: the time and memory that an hour takes, and what the order of words is worth.

    python benchmarks/moments.py hour RUN SCENES     # encode and search one hour
    python benchmarks/moments.py order RUN SCENES    # twins hidden in two minutes of other scenes

RUN is a run folder, SCENES the folder that `atk soundscapes` wrote, with twins and events.csv.
"""

import argparse
import itertools
import resource
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import soundfile

from atk.data.captions import Clip, read_split
from atk.data.side_files import Event, read_events, read_twins
from atk.eval.embedder import Embedder
from atk.eval.long_audio import FrameStream, joined
from atk.eval.moment_queries import Phrases
from atk.eval.moment_search import search_moments
from atk.eval.moment_settings import saved_moments
from atk.eval.moments import MomentConfig, best_first, in_order, level_of, smoothed, spans_above


def by_scene(scenes: Path) -> dict[str, list[Event]]:
    """Events of each scene."""
    events: dict[str, list[Event]] = {}
    for event in read_events(scenes / "events.csv"):
        events.setdefault(event.file_name, []).append(event)
    return events


def compose(scenes: Path, clips: Iterable[Clip], path: Path, seconds: float) -> list[Event]:
    """Write clips one after the other until a recording has its length, and return its events."""
    heard = by_scene(scenes)
    events: list[Event] = []
    written = 0
    output: soundfile.SoundFile | None = None
    for clip in clips:
        wave, rate = soundfile.read(str(clip.path), dtype="int16")
        output = output or soundfile.SoundFile(str(path), "w", rate, 1, "PCM_16")
        start = written / rate
        events += [
            event._replace(file_name=path.name, start=start + event.start, end=start + event.end)
            for event in heard.get(clip.file_name, ())
        ]
        output.write(wave)
        written += len(wave)
        if written >= seconds * rate:
            break
    if output is not None:
        output.close()
    return events


def hour(model: Embedder, scenes: Path, folder: Path) -> None:
    """Time and memory of the frames of an hour, and whether neighboring frames differ more near seams."""
    path = folder / "hour.wav"
    compose(scenes, itertools.cycle(read_split(scenes, "test").clips), path, 3600)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin = time.perf_counter()
    parts = list(model.iter_frames(path))
    elapsed = time.perf_counter() - begin
    frames = joined(parts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = soundfile.info(str(path)).duration
    steps = frames.frames.diff(dim=0).norm(dim=1)
    stride = len(parts[1].times)
    inner = steps[len(parts[0].times) - 1 : -len(parts[-1].times)]
    worst = inner[: len(inner) // stride * stride].view(-1, stride).mean(0).max() / steps.mean()
    print(f"{seconds:.0f} s, {len(frames.times)} frames: {elapsed:.0f} s, real-time factor {elapsed / seconds:.4f}")
    print(f"peak memory {peak:.2f} GiB, before {memory:.2f} GiB")
    print(f"distance of neighboring frames at the worst position in a window: {worst:.2f} of the mean")
    begin = time.perf_counter()
    search_moments(model.model, path, ["a dog barks, then a bell rings"], clip_seconds=model.clip_seconds or 10.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"search: {time.perf_counter() - begin:.0f} s, peak memory {peak:.2f} GiB")


def order(model: Embedder, scenes: Path, folder: Path, config: MomentConfig) -> None:
    """How often the best moment of "A, then B" is the clip with that order, and not its twin with the opposite one."""
    clips = {clip.file_name: clip for clip in read_split(scenes, "test").clips}
    twins = read_twins(scenes / "twins.csv")
    others = [clip for name, clip in clips.items() if not any(name in pair for pair in twins)]
    right = {"in order": 0, "any order": 0}
    count = 0
    for index, pair in enumerate(twins):
        filler = others[20 * index % len(others) :][:20]
        clips_used = [*filler[:10], clips[pair[0]], *filler[10:], clips[pair[1]]]
        path = folder / "scene.wav"
        events = compose(scenes, clips_used, path, 600)
        starts = dict(
            zip(pair, (sum(clip.seconds for clip in clips_used[:before]) for before in (10, 21)), strict=True)
        )
        for name in pair:
            first, last = starts[name], starts[name] + clips[name].seconds
            phrases = [event.phrase for event in sorted(events, key=lambda e: e.start) if first <= event.start < last]
            text = Phrases(model.model, phrases)
            stream = FrameStream(
                model.model, [Clip("a", path, (), soundfile.info(str(path)).duration)], 6.0, batch_size=16
            )
            [(_, curves)] = stream.clips(lambda frames, text=text, phrases=phrases: text.curves(frames, phrases))
            smooth = smoothed(curves.frames.T, round(config.smooth / model.frame_seconds))
            spans = [
                spans_above(row, curves.times, model.frame_seconds, level_of(row, config), config.merge)
                for row in smooth
            ]
            chains = {"in order": in_order(spans, config.within)}
            chains["any order"] = chains["in order"] + in_order(spans[::-1], config.within)
            count += 1
            for label, moments in chains.items():
                best = best_first(moments, config.overlap)[:1]
                right[label] += bool(best and first <= (best[0].start + best[0].end) / 2 < last)
    for label, hits in right.items():
        print(f"{label}: the best moment lies in the right clip for {hits} of {count} sequences")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("hour", "order"))
    parser.add_argument("run", type=Path)
    parser.add_argument("scenes", type=Path)
    arguments = parser.parse_args()
    model = Embedder.load(arguments.run, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.task == "hour":
            hour(model, arguments.scenes, Path(folder))
        else:
            order(model, arguments.scenes, Path(folder), saved_moments(arguments.run))


if __name__ == "__main__":
    main()
