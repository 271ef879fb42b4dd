"""The readers that are fuzzed, each with valid files to spoil."""

import contextlib
import functools
import io
import tarfile
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile
import torch
from support.encode import encode, sweep
from support.fuzz import Format
from support.published_sets import MAKERS
from support.tiny_captioner import tiny as tiny_captioner
from support.tiny_clap import tiny_clap

from atk.cli import commands
from atk.data import UnlabeledAudio, audio_info, headers, load_audio, mpeg, read_split
from atk.data.published import import_set
from atk.data.references import read_references
from atk.data.side_files import read_events, read_tags, read_twins
from atk.models import from_pretrained
from atk.models.text import TextEncoder, TextEncoderConfig
from atk.train.checkpoint import last_whole_checkpoint, load_state, save_checkpoint
from atk.train.log import RunLog

RATE = 8000
CAPTIONS = ["a dog barks", "rain falls, then a bell rings", "Ø 犬"]


def _sound(seconds: float, channels: int = 1) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return np.stack([0.3 * np.sin(2 * np.pi * (300 + 50 * channel) * time) for channel in range(channels)], 1)


def _make_audio(folder: Path, channels: int = 2, **options: object) -> list[Path]:
    for name, seconds, count in (("a", 2.0, 1), ("b", 0.3, channels)):
        soundfile.write(folder / name, _sound(seconds, count), RATE, **options)
    return [folder / "a", folder / "b"]


def _make_bare_mp3(folder: Path) -> list[Path]:
    """Write MP3 files without their first frame, which holds the length."""
    paths = []
    for path in _make_audio(folder, format="MP3"):
        data = path.read_bytes()
        frame, first = mpeg._first_frame(data)
        paths.append(path.with_suffix(".mp3"))
        paths[-1].write_bytes(data[first + frame.sizes[data[first + 2]] :])
    return paths


def _make_encoded(folder: Path, suffix: str, codec: str, rate: int = RATE, **options: str) -> list[Path]:
    """Write files that only FFmpeg reads."""
    cases = (("a", 2.0, 1), ("b", 0.3, 2))
    return [encode(folder / f"{name}{suffix}", codec, sweep(s, rate, c), rate, options=options) for name, s, c in cases]


def _read_audio(path: Path) -> None:
    info = audio_info(path)
    audio = load_audio(path, info.sample_rate, 0.0, 5.0, [])
    limit = min(info.frames, round(5.0 * info.sample_rate))
    assert audio.dim() == 1 and audio.isfinite().all() and float(audio.abs().max()) <= 64
    assert limit - 2304 <= len(audio) <= limit
    assert len(load_audio(path, 16000, info.seconds / 2, 0.1, [])) >= 1


def _make_split(folder: Path) -> list[Path]:
    soundfile.write(folder / "a.wav", _sound(0.1), RATE)
    soundfile.write(folder / "Ø 犬.wav", _sound(0.1), RATE)
    rows = [f'a.wav,"{CAPTIONS[1]}"', "a.wav,a dog", f"Ø 犬.wav,{CAPTIONS[2]}"]
    (folder / "train.csv").write_text("file_name,caption\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return [folder / "train.csv"]


def _read_split(path: Path) -> None:
    split = read_split(path.parent, "train")
    assert split.clips and all(clip.captions and clip.path.is_file() for clip in split.clips)


def _make_array(folder: Path) -> list[Path]:
    for name in "ab":
        np.save(folder / name, _sound(0.3)[:, 0].astype(np.float32))
    return [folder / "a.npy", folder / "b.npy"]


SIDE_FILES = {
    "events.csv": "file_name,event,phrase,start,end\na.wav,dog,a dog,0.5,1.5\nb.wav,rain,rain,0,2\n",
    "tags.csv": "file_name,dog,rain\na.wav,1,0\nb.wav,0,1\n",
    "twins.csv": "file_name,twin\na.wav,b.wav\n",
    "joined/tags.csv": "file_name,tags\na.wav,dog;rain\nb.wav,dog\n",
    "joined/vocabularies/all.txt": "dog\nrain\n",
}


def _make_side_files(folder: Path) -> list[Path]:
    (folder / "meta").mkdir()
    (folder / "audio").mkdir()
    (folder / "joined" / "vocabularies").mkdir(parents=True)
    soundfile.write(folder / "audio" / "a.wav", _sound(0.1), RATE)
    (folder / "meta" / "esc50.csv").write_text("filename,fold,category\na.wav,1,dog\n")
    for name, text in SIDE_FILES.items():
        (folder / name).write_text(text)
    return [*(folder / name for name in SIDE_FILES), folder / "meta" / "esc50.csv"]


def _read_side_file(path: Path) -> None:
    readers = {"events.csv": read_events, "tags.csv": read_tags, "twins.csv": read_twins}
    if path.name == "esc50.csv":
        read_references(path.parents[1])
    elif path.suffix == ".txt":
        read_tags(path.parents[1] / "tags.csv")
    else:
        readers[path.name](path)


def _make_published(folder: Path) -> list[Path]:
    for name, maker in MAKERS.items():
        (folder / name).mkdir()
        maker(folder / name)
    suffixes = (".csv", ".tsv", ".json", ".txt", ".pkl")
    lists = folder.glob("magnatagatune/*.npy")
    return sorted([path for path in folder.rglob("*") if path.suffix in suffixes] + list(lists))


def _read_published(path: Path) -> None:
    folder = next(parent for parent in path.parents if parent.name in MAKERS)
    with tempfile.TemporaryDirectory() as out:
        report = import_set(folder.name, folder, Path(out, "out"))
        split = next(name for name, count in report["splits"].items() if count["clips"])
        assert read_split(Path(out, "out"), split).clips


def _make_shard(folder: Path) -> list[Path]:
    for name, form in (("a.tar", tarfile.PAX_FORMAT), ("b.tar", tarfile.GNU_FORMAT)):
        with tarfile.open(folder / name, "w", format=form) as archive:
            for member in ("a.wav", "n" * 120 + ".wav", "Ø.wav"):
                content = io.BytesIO()
                soundfile.write(content, _sound(0.05), RATE, format="WAV")
                info = tarfile.TarInfo(member)
                info.size = len(content.getvalue())
                archive.addfile(info, io.BytesIO(content.getvalue()))
    return [folder / "a.tar", folder / "b.tar"]


def _read_shard(path: Path) -> None:
    pool = UnlabeledAudio.scan([path])
    for index in range(min(len(pool), 20)):
        with contextlib.suppress(ValueError):  # an AudioError with the name of the member
            pool.load(index, RATE, 1.0, 0.0, [])


def _make_cache(folder: Path) -> list[Path]:
    (folder / "audio").mkdir()
    soundfile.write(folder / "audio" / "a.wav", _sound(0.1), RATE)
    UnlabeledAudio.scan([folder / "audio"], folder / "list.npz")
    return [folder / "list.npz"]


def _read_cache(path: Path) -> None:
    pool = UnlabeledAudio.scan([path.parent / "audio"], path)
    for index in range(min(len(pool), 20)):
        with contextlib.suppress(ValueError):
            pool.load(index, RATE, 1.0, 0.0, [])


def _make_headers(folder: Path) -> list[Path]:
    soundfile.write(folder / "a.wav", _sound(0.1), RATE)
    (folder / "train.csv").write_text("file_name,caption\na.wav,a dog\n")
    with mock.patch.multiple(headers, _FEWEST=1, _FRESH=0):
        time.sleep(0.01)
        read_split(folder, "train")
    return [folder / headers.CACHE_NAME]


def _read_headers(path: Path) -> None:
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        (clip,) = read_split(path.parent, "train").clips
    assert clip.seconds == 0.1
    if notes:  # the list is not used
        raise ValueError(notes[0].message)


@functools.cache
def _models() -> list[torch.nn.Module]:
    return [tiny_clap(), tiny_captioner()]


def _make_run(folder: Path) -> list[Path]:
    state = {"step": 3, "seconds": 1.0, "skipped": {"a.wav": "gone"}, "optimizer": {"state": {0: torch.ones(20)}}}
    for name, model in zip(("clap", "captioner"), _models(), strict=True):
        save_checkpoint(folder / name / "checkpoints", 3, model, state, best=True)
        (folder / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 3, "loss": 1.0}\n')
    return sorted(path for path in folder.glob("*/checkpoints/step-*/**/*") if path.is_file()) + sorted(
        folder.glob("*/metrics.jsonl")
    )


def _read_run(path: Path) -> None:
    run = next(parent for parent in path.parents if (parent / "checkpoints").is_dir())
    if path.name == "metrics.jsonl":
        with RunLog(run, 2):
            assert all('"step": 3' not in line for line in path.read_text().splitlines())
        return
    last_whole_checkpoint(run / "checkpoints")
    model = from_pretrained(run)
    assert all(value.shape for value in model.state_dict().values() if value.dim())
    assert set(load_state(run / "checkpoints")) >= {"step", "optimizer"} or path.name == "training.pt"


def _make_tokenizer(folder: Path) -> list[Path]:
    encoder = tiny_clap().text_encoder
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


def _read_tokenizer(path: Path) -> None:
    encoder = TextEncoder.create(TextEncoderConfig(pretrained=str(path.parent)), [])
    assert encoder.tokenize(CAPTIONS)["input_ids"].shape[0] == len(CAPTIONS)


YAML = """data: DIR
out: RUN
steps: 12
batch_size: 4
optim: {lr: 0.003}
model:
  dim: 16
  audio: {mel_bins: 16, channels: [4, 4, 8, 8], width: 32, layers: 1, heads: 2}
"""


def _make_yaml(folder: Path) -> list[Path]:
    (folder / "config.yaml").write_text(YAML)
    return [folder / "config.yaml"]


def _read_yaml(path: Path) -> None:
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            commands.parse(["train", "aligned", "--config", str(path), "--data", "d", "--out", "o"])
    except SystemExit as stop:
        if stop.code != 2 or stderr.getvalue().count("\n") != 1:
            raise RuntimeError(stderr.getvalue()) from None
        raise ValueError(stderr.getvalue()) from None


AUDIO = {
    "wav": {"format": "WAV"},
    "wav float": {"format": "WAV", "subtype": "FLOAT"},
    "wav adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "wav gsm": {"format": "WAV", "subtype": "GSM610", "channels": 1},
    "wavex": {"format": "WAVEX"},
    "rf64": {"format": "RF64"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "caf": {"format": "CAF"},
    "au": {"format": "AU"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}
CODECS = {
    "m4a": {"suffix": ".m4a", "codec": "aac"},
    "aac": {"suffix": ".aac", "codec": "aac"},
    "webm": {"suffix": ".webm", "codec": "libopus", "rate": 48000},
    "wma": {"suffix": ".wma", "codec": "wmav2", "rate": 16000, "b": "48000"},
    "avi": {"suffix": ".avi", "codec": "pcm_s16le"},
    "wavpack": {"suffix": ".wv", "codec": "wavpack"},
}
KINDS = {
    **{name: Format(functools.partial(_make_audio, **options), _read_audio) for name, options in AUDIO.items()},
    "mp3 without a length": Format(_make_bare_mp3, _read_audio),
    **{name: Format(functools.partial(_make_encoded, **options), _read_audio) for name, options in CODECS.items()},
    "captions": Format(_make_split, _read_split),
    "side files": Format(_make_side_files, _read_side_file),
    "numpy": Format(_make_array, _read_audio),
    "published sets": Format(_make_published, _read_published),
    "shards": Format(_make_shard, _read_shard),
    "list of unlabeled audio": Format(_make_cache, _read_cache),
    "list of headers": Format(_make_headers, _read_headers),
    "run folder": Format(_make_run, _read_run),
    "pretrained text encoder": Format(_make_tokenizer, _read_tokenizer),
    "configuration": Format(_make_yaml, _read_yaml),
}
