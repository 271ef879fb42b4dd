"""Recordings of single events: read from a folder, checked, trimmed, and assigned to splits by their source."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.random import Generator

from atk.data import AudioError, load_audio
from atk.data.captions import checked_clips
from atk.data.containers import Stored
from atk.data.references import read_references
from atk.data.tables import Table
from atk.soundscapes.config import SoundscapeConfig
from atk.soundscapes.events import AUDIBLE, audible, audible_span, block_energies
from atk.soundscapes.sounds import Event

_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}  # of the sources of each class
_SECONDS = (0.05, 30.0)  # shortest usable sound, and how much of a recording is examined
_SILENCE = 1e-4  # highest amplitude of a recording that counts as silent
_ESC50_NAME = re.compile(r"\d+-(\d+)-[A-Z]-\d+")  # fold, clip, take, target
_FREESOUND_NAME = re.compile(r"(\d{4,})(?![^\W_])")  # the ID of a Freesound clip comes first


@dataclass(frozen=True)
class EventFile:
    """A recording of a single event.

    Attributes:
        name: file name, relative to the folder of recordings.
        path: path of the file.
        event: name of the event class.
        source: recordings with the same source, such as takes of a clip, belong to the same split.
        split: split that the data set assigns; "" if it assigns none.
        start: start of the audible part in seconds.
        seconds: length of the audible part.
        digest: hash of its samples.
    """

    name: str
    path: Path | Stored
    event: str
    source: str
    split: str = ""
    start: float = 0.0
    seconds: float = 0.0
    digest: bytes = b""


Skipped = list[tuple[str, str]]  # (name, reason)
EventFiles = Mapping[str, Mapping[str, tuple[EventFile, ...]]]  # by split and class


@dataclass(frozen=True)
class Recorded:
    """Recorded events.

    Attributes:
        files: the recordings of each split and class.
        wordings: wordings by style and class, as from `class_forms`.
    """

    files: EventFiles
    wordings: Mapping[str, Mapping[str, tuple[str, ...]]]

    def names(self, config: SoundscapeConfig) -> tuple[str, ...]:
        """Names of the event classes."""
        return tuple(next(iter(self.files.values())))

    def draw(self, rng: Generator, config: SoundscapeConfig, name: str) -> Event:
        """An event without attributes: nothing is known about the pitch of a recording or how often it repeats."""
        return Event(name)

    def wave(
        self, event: Event, rng: Generator, config: SoundscapeConfig, split: str, seconds: float
    ) -> tuple[np.ndarray, str]:
        """Load a recording of the class from the split, cut to the part with the most energy if it is too long."""
        files = self.files[split][event.name]
        file = files[int(rng.integers(len(files)))]
        rate = config.sample_rate
        longest = round(seconds * rng.uniform(0.75, 1.0) * rate)
        sound = load_audio(file.path, rate, file.start, file.seconds, notes=[]).numpy()
        sound = _loudest_part(sound, longest)
        return audible(sound, rate, _threshold(sound, rate)), file.name

    def forms(self, style: str, name: str) -> tuple[str, ...]:
        """Wordings of a class in a style; there may be no clause."""
        return self.wordings[style].get(name, ())


def read_event_files(folder: Path) -> tuple[list[EventFile], Skipped]:
    """Read a folder of recordings in the layout of ESC-50, of FSD50K, or with one subfolder per class.

    Raises:
        FileNotFoundError, ValueError: as for `read_references`; or the files have no classes, or FSD50K lacks one of
            its tables or has an unknown split.
    """
    if (folder / "FSD50K.ground_truth").is_dir():
        return _read_fsd50k(folder)
    pool = read_references(folder)
    skipped = list(pool.skipped)
    files = []
    for clip, event in zip(pool.clips, pool.classes, strict=True):
        if event:
            files.append(EventFile(clip.file_name, clip.path, event, _source(clip.file_name)))
        else:
            skipped.append((clip.file_name, "in no class folder"))
    if not files:
        raise ValueError(f"recordings: {folder} has no classes; add meta/esc50.csv or one subfolder per class")
    return files, skipped


def _read_fsd50k(folder: Path) -> tuple[list[EventFile], Skipped]:
    """Read the clips of FSD50K with a single event class.

    Labels include all of their ancestors, so a clip with a single class has exactly the labels that this class implies:
    those that all clips with the class have in common.
    """
    labels: dict[str, frozenset[str]] = {}  # by name of the file
    split_of: dict[str, str] = {}
    for part in ("dev", "eval"):
        table = folder / "FSD50K.ground_truth" / f"{part}.csv"
        for line, row in Table.open(table, ("fname", "labels")).records():
            name = f"FSD50K.{part}_audio/{row['fname'].strip()}.wav"
            labels[name] = frozenset(label.strip() for label in row["labels"].split(",") if label.strip())
            split_of[name] = "test" if part == "eval" else row.get("split", "train").strip()
            if split_of[name] not in _SHARES:
                raise ValueError(f"{table} line {line}: split must be train or val, got {split_of[name]!r}")
    implied: dict[str, frozenset[str]] = {}
    for group in labels.values():
        for label in group:
            implied[label] = implied.get(label, group) & group
    skipped: Skipped = []
    event_of: dict[str, str] = {}
    for name, group in labels.items():
        classes = [label for label in group if implied[label] == group]
        if len(classes) == 1:
            event_of[name] = classes[0]
        else:
            skipped.append((name, "several event classes" if group else "no label"))
    clips = checked_clips([(name, folder / name, ()) for name in event_of], skipped, "skip", folder, folder)
    files = [
        EventFile(
            clip.file_name, clip.path, event_of[clip.file_name], _source(clip.file_name), split_of[clip.file_name]
        )
        for clip in clips.clips
    ]
    return files, skipped


def _source(name: str) -> str:
    """What a recording was cut from: the folder within its class, the clip ID in its name, or the recording itself."""
    path = PurePosixPath(name)
    if len(path.parts) > 2:
        return str(path.parent)
    match = _ESC50_NAME.fullmatch(path.stem) or _FREESOUND_NAME.match(path.stem)
    return match[1] if match else str(path.with_suffix(""))


def trimmed(file: EventFile, rate: int) -> tuple[EventFile | None, str]:
    """Find the audible part of a recording.

    Returns:
        The recording with its audible part and a note on what is unusual about it ("" if nothing is); or None and the
        reason why it cannot be used.
    """
    notes: list[str] = []
    try:
        wave = load_audio(file.path, rate, seconds=_SECONDS[1], notes=notes).numpy()
    except AudioError as error:
        return None, error.reason
    if np.abs(wave).max() < _SILENCE:
        return None, "silent"
    first, last = audible_span(wave, rate, _threshold(wave, rate))
    seconds = (last - first) / rate
    if seconds < _SECONDS[0]:
        return None, f"only {1000 * seconds:.0f} ms of sound"
    digest = sha256(wave[first:last].tobytes()).digest()
    return replace(file, start=first / rate, seconds=seconds, digest=digest), "; ".join(notes)


def _threshold(wave: np.ndarray, rate: int) -> float:
    """Energy of a 10 ms block, relative to the loudest, above which it counts as sound.

    35 dB below the loudest; or, if a noise floor 20 dB below the loudest is higher than that, 6 dB above the floor.
    """
    energies = block_energies(wave, rate)
    floor = float(np.quantile(energies, 0.1) / energies.max())
    return max(AUDIBLE, 4.0 * floor) if floor < 0.01 else AUDIBLE


def _loudest_part(wave: np.ndarray, samples: int) -> np.ndarray:
    """The `samples` samples with the most energy, in steps of a hundredth; the whole wave if it is not longer."""
    if len(wave) <= samples:
        return wave
    energy = np.concatenate(([0.0], np.cumsum(np.square(wave, dtype=np.float64))))
    starts = np.arange(0, len(wave) - samples + 1, max(1, samples // 100))
    first = starts[np.argmax(energy[starts + samples] - energy[starts])]
    return wave[first : first + samples]


def assign_splits(files: Iterable[EventFile], splits: Sequence[str], seed: int) -> tuple[EventFiles, dict[str, int]]:
    """Assign recordings to splits, so that no source is in two of them.

    A split that the data set assigns is kept, except that "val" joins "train" if it is not in use. The other sources of
    each class are divided by `_SHARES`, at least one for each split.

    Args:
        files: the recordings.
        splits: splits in use.
        seed: seed of the assignment.

    Returns:
        The recordings of each split and class, sorted by class, and the number of sources of each class that lacks
        recordings in one of the splits and is left out.
    """
    files = list(files)
    sources: dict[str, set[str]] = {}
    split_of: dict[str, str] = {}
    for file in files:
        sources.setdefault(file.event, set()).add(file.source)
        if file.split:
            split_of[file.source] = "train" if file.split == "val" and "val" not in splits else file.split
    total = sum(_SHARES[split] for split in splits)
    # Classes with few sources come first, while the splits of sources that several classes share are still open.
    for event in sorted(sources, key=lambda event: (len(sources[event]), event)):
        # A random order that does not depend on the other sources.
        order = sorted(sources[event], key=lambda source: sha256(f"{seed} {source}".encode()).digest())
        counts = Counter(split_of[source] for source in order if source in split_of)
        for source in order:
            if source not in split_of:
                wanted = {split: len(order) * _SHARES[split] / total - counts[split] for split in splits}
                split_of[source] = max(splits, key=lambda split: (not counts[split], wanted[split]))
                counts[split_of[source]] += 1
    by_split: dict[str, dict[str, list[EventFile]]] = {split: {} for split in splits}
    for file in files:
        if split_of[file.source] in by_split:
            by_split[split_of[file.source]].setdefault(file.event, []).append(file)
    complete = sorted(set(sources).intersection(*by_split.values()))
    assigned = {split: {event: tuple(events[event]) for event in complete} for split, events in by_split.items()}
    return assigned, {event: len(sources[event]) for event in sorted(set(sources) - set(complete))}
