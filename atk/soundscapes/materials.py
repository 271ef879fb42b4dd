"""What scenes are made of: events, backgrounds, and rooms, synthesized or from folders of recordings."""

import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from atk.data import AudioError, DataWarning, describe_skipped, load_audio, read_folder
from atk.data.audio import decode_audio
from atk.data.captions import SPLITS
from atk.data.progress import progress_bar
from atk.soundscapes.class_phrases import class_forms
from atk.soundscapes.config import BACKGROUNDS, SIMULATED, SoundscapeConfig
from atk.soundscapes.parallel import map_in_order
from atk.soundscapes.recordings import EventFile, Recorded, assign_splits, read_event_files, trimmed
from atk.soundscapes.rooms import RecordedRooms, Rooms, SimulatedRooms
from atk.soundscapes.sounds import Sounds, Synthesized


@dataclass(frozen=True)
class Materials:
    """What scenes are made of.

    Attributes:
        events: source of the events.
        backgrounds: recordings of each folder among the backgrounds.
        rooms: source of the rooms; None for no reverberation.
    """

    events: Sounds = field(default_factory=Synthesized)
    backgrounds: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    rooms: Rooms | None = None


SYNTHETIC = Materials()


def read_materials(config: SoundscapeConfig, progress: bool = False, processes: int | None = None) -> Materials:
    """Read the folders that the settings name; a `DataWarning` lists what is skipped.

    Raises:
        FileNotFoundError, ValueError: a folder does not exist or has nothing usable, or too few classes are left.
    """
    folders = [name for name in config.backgrounds if name not in BACKGROUNDS]
    backgrounds = {name: _read_backgrounds(name, progress, processes) for name in folders}
    rooms: Rooms | None = None
    if config.rirs:
        rooms = SimulatedRooms() if config.rirs == SIMULATED else _read_rooms(config)
    events = _read_events(config, progress, processes) if config.recordings else Synthesized()
    return Materials(events, backgrounds, rooms)


def _read_events(config: SoundscapeConfig, progress: bool, processes: int | None) -> Recorded:
    folder = Path(config.recordings)
    candidates, skipped = read_event_files(folder)
    wordings = class_forms(sorted({file.event for file in candidates}), folder / "phrases.csv")
    files: dict[bytes, EventFile] = {}
    with closing(map_in_order(candidates, partial(trimmed, rate=config.sample_rate), processes)) as results:
        bar = progress_bar(results, "recordings" if progress else None, len(candidates))
        for candidate, (file, note) in zip(candidates, bar, strict=True):
            if file is None:
                skipped.append((candidate.name, note))
            elif file.digest in files:
                skipped.append((file.name, f"same sound as {files[file.digest].name}"))
            else:
                files[file.digest] = file
                _warn("recordings", f"{file.name}: {note}" if note else "")
    _warn("recordings", describe_skipped(skipped))
    splits = [split for split in SPLITS if getattr(config, split)]
    assigned, left_out = assign_splits(files.values(), splits, config.seed)
    names = ", ".join(f"{name} ({count})" for name, count in left_out.items())
    plural = "es" * (len(left_out) > 1)
    lost = f"left out {len(left_out)} class{plural} without a source for each of {', '.join(splits)}: {names}"
    _warn("recordings", lost if left_out else "")
    events = Recorded(assigned, wordings)
    classes, needed = len(events.names(config)), max(2, config.events[1])
    if classes < needed:
        reasons = lost if left_out else describe_skipped(skipped, 3)
        raise ValueError(
            f"recordings: {folder} must have at least {needed} classes with a source for each of {', '.join(splits)}, "
            f"got {classes}; {reasons or 'add recordings of other classes'}"
        )
    return events


def _read_backgrounds(folder: str, progress: bool, processes: int | None) -> tuple[Path, ...]:
    """The recordings in a folder that can be decoded to their end, because a scene may take any part of them."""
    split = read_folder(folder)
    paths = [Path(folder, clip.file_name) for clip in split.clips]
    skipped = list(split.skipped)
    usable = []
    with closing(map_in_order(paths, _decoding_error, processes)) as results:
        bar = progress_bar(results, "backgrounds" if progress else None, len(paths))
        for clip, path, reason in zip(split.clips, paths, bar, strict=True):
            if reason:
                skipped.append((clip.file_name, reason))
            else:
                usable.append(path)
    _warn("backgrounds", describe_skipped(skipped))
    if not usable:
        raise ValueError(f"backgrounds: {folder} has no usable recording; {describe_skipped(skipped, 3)}")
    return tuple(usable)


def _decoding_error(path: Path) -> str:
    """Why a file cannot be decoded to its end; "" if it can."""
    try:
        decode_audio(path)
    except AudioError as error:
        return error.reason
    return ""


def _read_rooms(config: SoundscapeConfig) -> RecordedRooms:
    """Read a folder of impulse responses; its subfolders are different rooms."""
    split = read_folder(config.rirs)
    files: dict[Path, list[Path]] = {}
    skipped = list(split.skipped)
    for clip in split.clips:
        try:
            silent = not np.any(load_audio(clip.path, config.sample_rate, notes=[]).numpy())
        except AudioError as error:
            skipped.append((clip.file_name, error.reason))
            continue
        if silent:
            skipped.append((clip.file_name, "silent"))
        else:
            path = Path(config.rirs, clip.file_name)
            files.setdefault(path.parent, []).append(path)
    _warn("rirs", describe_skipped(skipped))
    if not files:
        raise ValueError(f"rirs: {config.rirs} has no usable impulse response")
    return RecordedRooms(tuple(map(tuple, files.values())))


def _warn(setting: str, message: str) -> None:
    if message:
        warnings.warn(f"{setting}: {message}", DataWarning, stacklevel=2)
