"""What the small scale uses in place of data sets and published weights: synthetic scenes and small random models."""

import csv
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP, ModelConfig
from atk.models.text import TextEncoderConfig
from atk.soundscapes import SoundscapeConfig, write_soundscapes

_SCENES = {"train": 24, "val": 6, "test": 8, "classes": 6, "seconds": (2.0, 2.5), "events": (1, 2), "pool": 10}
_VECTOR = 8  # width of the word vectors


def stand_ins(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Write stand-ins for data sets and files that the user does not give.

    Args:
        folder: folder to write; what is there already is kept.
        names: what is needed.

    Returns:
        The path of each.
    """
    clotho, audiocaps = folder / "clotho", folder / "audiocaps"
    writers = {
        "clotho": lambda: _scenes(clotho, 1, captions=2),
        "esc50": lambda: _scenes(clotho, 1, captions=2) / "pool",
        "clotho_audio": lambda: _scenes(clotho, 1, captions=2) / "audio" / "train",
        "audiocaps": lambda: _scenes(audiocaps, 2, captions=1),
        "audiocaps_audio": lambda: _scenes(audiocaps, 2, captions=1) / "audio" / "train",
        "audioset": lambda: _scenes(audiocaps, 2, captions=1) / "pool" / "audio",
        "ecals": lambda: _tagged(folder / "ecals", _scenes(clotho, 1, captions=2)),
        "glove": lambda: _word_vectors(folder / "vectors.txt", _scenes(clotho, 1, captions=2)),
        "msclap": lambda: _model(folder / "model"),
        "laion": lambda: _model(folder / "model"),
        "tclap": lambda: _model(folder / "model"),
    }
    return {name: str(writers[name]()) for name in names if name in writers}


def _scenes(folder: Path, seed: int, captions: int) -> Path:
    config = SoundscapeConfig(seed=seed, captions_per_clip=captions, **_SCENES)
    return write_soundscapes(folder, config, progress=False)


def _tagged(folder: Path, scenes: Path) -> Path:
    """Scenes in the form of ECALS: all tags of a clip are its caption, and there are two vocabularies."""
    if folder.is_dir():
        return folder
    with (scenes / "tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tags = {row.pop("file_name"): [tag for tag, value in row.items() if value == "1"] for row in rows}
    names = [tag for tag in rows[0] if tag != "file_name"]
    partial = folder.with_name(f"partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "vocabularies").mkdir(parents=True)
    (partial / "audio").symlink_to(os.path.relpath(scenes / "audio", folder))
    (partial / "vocabularies" / "ecals.txt").write_text("\n".join(names) + "\n")
    (partial / "vocabularies" / "msd50.txt").write_text("\n".join(names[:3]) + "\n")
    _write(partial / "tags.csv", "tags", {name: ";".join(listed) for name, listed in tags.items()})
    for split, source in {"train": "train", "val": "val", "test": "test", "multiquery": "test"}.items():
        clips = {name: ", ".join(listed) for name, listed in tags.items() if f"/{source}/" in f"/{name}" and listed}
        _write(partial / f"{split}.csv", "caption", clips)
    partial.replace(folder)
    return folder


def _write(path: Path, column: str, values: dict[str, str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", column), *values.items()])


def _word_vectors(path: Path, scenes: Path) -> Path:
    """Random vectors of the words of the tags, in the format of GloVe."""
    with (scenes / "tags.csv").open(newline="") as file:
        names = next(csv.reader(file))[1:]
    words = sorted({word for name in names for word in name.replace("_", " ").split()})
    vectors = torch.randn(len(words), _VECTOR, generator=torch.Generator().manual_seed(0))
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in row)}" for word, row in zip(words, vectors.tolist(), strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def _model(folder: Path) -> Path:
    """A model of two encoders with random weights."""
    if folder.is_dir():
        return folder
    torch.manual_seed(0)
    audio = AudioEncoderConfig(mel_bins=16, channels=(4, 4, 4, 4), width=16, layers=1, heads=2)
    model = CLAP.create(ModelConfig(16, audio, TextEncoderConfig(width=16, layers=1, heads=2)), ["a sound of a dog"])
    partial = folder.with_name(f"partial-{folder.name}")
    model.save_pretrained(partial)
    partial.replace(folder)
    return folder
