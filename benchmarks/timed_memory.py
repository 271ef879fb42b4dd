"""Memory of training on recordings of 20 minutes with timed captions, and what the products of an einsum would need.

python benchmarks/timed_memory.py            # ten recordings, batch 8: minutes on two CPU cores
"""

import argparse
import csv
import itertools
import json
import resource
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from experiments import flags, run_atk

RATE = 16000
THINGS = ("dog", "bell", "door", "engine", "child", "kettle", "train", "violin")
DEEDS = ("is heard twice", "comes closer", "fades away slowly", "stops all of a sudden")
PLACES = ("next to a busy road", "at the far end of a large hall", "behind a closed window", "while rain is falling")
RUN = {
    "steps": 1, "workers": 0, "device": "cpu", "precision": "fp32", "eval_every": 0, "micro_batch": 1,
    "activation_checkpointing": "true", "loss.timed_weight": 1.0, "loss.frame_weight": 1.0,
    "model.audio.frame_layer": 1, "model.text.token_layer": 0,
    "model.audio.dropout": 0,  # on a CPU, PyTorch's attention stores the weights of all pairs of frames to drop some
}  # fmt: skip


def write_recordings(folder: Path, count: int, seconds: int, captions: int) -> None:
    """Noise with timed captions of about ten words, evenly spaced."""
    texts = itertools.cycle(
        f"the sound of a {thing} that {deed} {place}" for thing in THINGS for deed in DEEDS for place in PLACES
    )
    with (folder / "train.csv").open("w", newline="") as table, (folder / "events.csv").open("w", newline="") as events:
        rows, spans = csv.writer(table), csv.writer(events)
        rows.writerow(["file_name", "caption"])
        spans.writerow(["file_name", "event", "phrase", "start", "end"])
        for index in range(count):
            name = f"{index}.flac"
            noise = 0.1 * np.random.default_rng(index).standard_normal(seconds * RATE)
            soundfile.write(folder / name, noise, RATE)
            rows.writerow([name, f"recording number {index}"])
            step = seconds / captions
            for position in range(captions):
                spans.writerow([name, "sound", next(texts), position * step, (position + 0.6) * step])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=1200)
    parser.add_argument("--captions", type=int, default=60, help="timed captions of a recording")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--hop", type=int, default=320, help="hop of the spectrogram; a frame covers four")
    parser.add_argument("--layers", type=int, default=4, help="Transformer layers of the audio encoder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_recordings(folder, options.recordings, options.seconds, options.captions)
        settings = RUN | {
            "batch_size": options.batch,
            "clip_seconds": options.seconds,
            "loss.timed_captions": options.captions,
            "model.audio.hop": options.hop,
            "model.audio.layers": options.layers,
        }
        run_atk("train", "aligned", "--data", folder, "--out", folder / "run", *flags(settings))
        row = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[0])
        from atk.models.clap import CLAP

        tokens = CLAP.from_pretrained(folder / "run").tokenize([f"the sound of a dog that {DEEDS[0]} {PLACES[0]}"])
    frames = options.batch * options.seconds * RATE // (4 * options.hop)
    texts = options.batch * options.captions
    length = tokens["input_ids"].shape[1] - 2  # without special tokens
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{frames} frames in the batch, {texts} timed captions of about {length} tokens")
    print(f"one step: {row['seconds']:.0f} s, peak memory of the whole process {peak:.2f} GiB")
    scores = 4 * frames * texts / 2**30
    print(f"scores of all frames and captions: {scores:.2f} GiB; their einsum over tokens: {scores * length:.2f} GiB,")
    print(f"and {2 * scores * length:.2f} GiB with its gradient (computed)")


if __name__ == "__main__":
    main()
