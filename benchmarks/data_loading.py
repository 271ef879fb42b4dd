"""Clips per second: 10-s crops of 30-s files, decoded, resampled, and batched by atk, webdataset, and soundfile."""

import argparse
import io
import itertools
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import webdataset
from torch import Tensor

from atk._torchaudio import transforms
from atk.data import Clip, UnlabeledAudio, train_loader, unlabeled_loader
from experiments import write_results

FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
FILE_RATE, RATE = 44100, 16000
FILE_SECONDS, CLIP_SECONDS = 30, 10
BATCH = 16
NAMES = ("atk, files", "soundfile, files", "atk, tar shard", "webdataset, tar shard")
HEADS = f"| format | {' | '.join(NAMES)} |\n|---|{'---:|' * len(NAMES)}"


def write_files(folder: Path, suffix: str, count: int) -> list[Path]:
    """Write stereo files of music-like noise, and a tar shard of them in WebDataset layout."""
    paths = []
    for index in range(count):
        draw = np.random.default_rng(index)
        time_axis = np.arange(FILE_RATE * FILE_SECONDS) / FILE_RATE
        tones = np.sin(2 * np.pi * draw.uniform(100, 4000, (5, 1)) * time_axis).sum(0)
        audio = 0.05 * tones[:, None] + draw.normal(0, 0.02, (len(time_axis), 2))
        paths.append(folder / f"{index:04d}.{suffix}")
        soundfile.write(paths[-1], audio, FILE_RATE, subtype=FORMATS[suffix])
    with tarfile.open(folder / "shard.tar", "w") as archive:
        for path in paths:
            archive.add(path, path.name)
    return paths


class Reader:
    """What a user writes with soundfile: read the crop, mix it down, resample it."""

    def __init__(self) -> None:
        self.resample = transforms.Resample(FILE_RATE, RATE)
        self.random = np.random.default_rng(0)

    def __call__(self, source: Path | io.BytesIO) -> Tensor:
        with soundfile.SoundFile(source) as file:
            file.seek(int(self.random.random() * (file.frames - round(CLIP_SECONDS * FILE_RATE))))
            audio = file.read(round(CLIP_SECONDS * FILE_RATE), dtype="float32", always_2d=True)
        return self.resample(torch.from_numpy(audio.mean(1)))


def providers(paths: list[Path]) -> dict[str, Callable[[], Iterator[Tensor]]]:
    """For each provider, a function that returns batches `[BATCH, samples]` without end."""
    shard = paths[0].with_name("shard.tar")
    suffix = paths[0].suffix[1:]
    clips = [Clip(path.name, path, (), float(FILE_SECONDS)) for path in paths]
    pool = UnlabeledAudio.scan([shard])
    options = {"sample_rate": RATE, "clip_seconds": CLIP_SECONDS, "batch_size": BATCH}
    read = Reader()

    def with_soundfile() -> Iterator[Tensor]:
        order = itertools.cycle(paths)
        while True:
            yield torch.stack([read(path) for path in itertools.islice(order, BATCH)])

    def with_webdataset() -> Iterator[Tensor]:
        batch: list[Tensor] = []
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False).repeat():
            batch.append(read(io.BytesIO(sample[suffix])))
            if len(batch) == BATCH:
                yield torch.stack(batch)
                batch = []

    return {
        "atk, files": lambda: (batch.audio for batch in train_loader(clips, **options)),
        "soundfile, files": with_soundfile,
        "atk, tar shard": lambda: (batch.audio for batch in unlabeled_loader(pool, **options)),
        "webdataset, tar shard": with_webdataset,
    }


def rates(sources: dict[str, Callable[[], Iterator[Tensor]]], rounds: int, batches: int) -> dict[str, list[float]]:
    """Clips per second of each provider in each round; providers take turns."""
    streams = {name: source() for name, source in sources.items()}
    results: dict[str, list[float]] = {name: [] for name in sources}
    for turn in range(rounds + 1):
        for name, stream in streams.items():
            start = time.perf_counter()
            for batch in itertools.islice(stream, batches):
                assert batch.shape == (BATCH, round(CLIP_SECONDS * RATE))
            if turn:  # the first one warms up
                results[name].append(BATCH * batches / (time.perf_counter() - start))
    return results


def render_page(record: dict) -> str:
    """The Markdown page."""
    lines = [HEADS]
    for suffix, values in record["rates"].items():
        cells = [f"{statistics.median(values[name]):,.0f}" for name in NAMES]
        lines.append(f"| {suffix} | {' | '.join(cells)} |")
    command = f"python benchmarks/data_loading.py --files {record['files']} --rounds {record['rounds']}"
    parts = [
        "# Loading audio",
        (
            f"Clips per second in one process without workers: random crops of {CLIP_SECONDS} s from stereo files of "
            f"{FILE_SECONDS} s at {FILE_RATE:,} Hz, mixed down, resampled to {RATE:,} Hz, and stacked into batches of "
            f"{BATCH}. All decode with libsndfile and resample with the same code on one thread. The shard is "
            "an uncompressed tar file of the same files."
        ),
        "\n".join(lines),
        record["interpretation"],
        f"Medians of {record['rounds']} rounds, in which the providers took turns. Command: `{command}`.",
        ", ".join(f"{name}: {value}" for name, value in record["environment"].items())
        + f", soundfile: {soundfile.__version__}, webdataset: {webdataset.__version__}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="folder for the table")
    parser.add_argument("--files", type=int, default=32, help="files of each format")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=1, help="batches of each provider in a round")
    parser.add_argument("--interpretation", default="", help="text for the page, interpreting the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for suffix in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            paths = write_files(Path(folder), suffix, options.files)
            results[suffix] = rates(providers(paths), options.rounds, options.batches)
    record = {"files": options.files, "rounds": options.rounds, "rates": results}
    write_results(options.results / "data_loading", record, render_page, options.interpretation)
    print((options.results / "data_loading.md").read_text())


if __name__ == "__main__":
    main()
