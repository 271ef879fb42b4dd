"""Write a synthetic dataset as ordinary files."""

import csv
import dataclasses
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from atk.data.captions import SPLITS
from atk.data.progress import progress_bar
from atk.extras import optional_imports
from atk.soundscapes.captions import describe
from atk.soundscapes.config import SoundscapeConfig
from atk.soundscapes.materials import Materials, read_materials
from atk.soundscapes.parallel import map_in_order
from atk.soundscapes.pool import ESC50_COLUMNS, Recording, plan_pool, render_recording
from atk.soundscapes.scenes import Placed, Scene, plan, render

with optional_imports:
    import soundfile
    import yaml

FORMAT = 1  # incremented whenever the same settings produce different bytes


@dataclasses.dataclass(frozen=True)
class _WrittenScene:
    """A scene whose audio has been written."""

    scene: Scene
    captions: list[str]
    phrases: list[str]
    events: list[Placed]


def write_soundscapes(
    out: str | os.PathLike, config: SoundscapeConfig, progress: bool = True, processes: int | None = None
) -> Path:
    """Write the dataset that `config` describes to the folder `out`.

    The files are train.csv, val.csv, test.csv (file_name, caption), audio/SPLIT/NNNNN.wav (16 bit), events.csv
    (file_name, event, phrase, start, end in seconds, and recording if the events are recorded), tags.csv (file_name and
    a 0/1 column per class), twins.csv (file_name, twin) if there are twins, and soundscapes.yaml (the settings). With
    `config.pool`, the folder pool/ of single events has audio/*.wav, meta/esc50.csv (as in ESC-50) and train.csv
    (file_name, caption).

    The folder appears only once it is complete; an interrupted call leaves nothing behind. An existing folder with the
    same settings is kept. A `DataWarning` lists the recordings that are left out.

    Args:
        out: folder to write. It must be missing or empty, unless it was written with the same `config`.
        config: settings; the files depend on nothing else, except for the folders of recordings that it names.
        progress: show progress on stderr.
        processes: number of processes that render scenes; None uses one per CPU.

    Returns:
        The absolute path of the folder.

    Raises:
        FileExistsError: `out` is a file, or a folder with other content.
        FileNotFoundError: a folder of recordings does not exist.
        ValueError: `config` asks for more distinct scenes than there are, or a folder has too few usable recordings.
        AudioError: a recording has become unreadable since it was checked at the start.
    """
    out = Path(out).resolve()
    settings = {"format": FORMAT, **_as_yaml_types(config)}
    if _is_written(out, settings):
        if progress:
            print(f"{out} already contains these soundscapes", file=sys.stderr)
        return out
    materials = read_materials(config, progress, processes)
    scenes = plan(config, materials)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_out = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    try:
        for split in SPLITS:
            if scenes[split]:
                (partial_out / "audio" / split).mkdir(parents=True)
        all_scenes = [scene for split in SPLITS for scene in scenes[split]]
        write_scene = partial(_write_scene, root=partial_out, config=config, materials=materials)
        # The workers stop before the folder is removed, so none of them can still be writing to it.
        with closing(map_in_order(all_scenes, write_scene, processes)) as results:
            written = list(progress_bar(results, "soundscapes" if progress else None, len(all_scenes), "scene"))
        _write_tables(partial_out, written, config, materials.events.names(config))
        if config.pool:
            _write_pool(partial_out / "pool", config, progress, processes)
        (partial_out / "soundscapes.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        partial_out.replace(out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return out


def _is_written(out: Path, settings: dict[str, Any]) -> bool:
    """Whether `out` already has the dataset with these `settings`; raises FileExistsError if it has other content."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        existing = yaml.safe_load((out / "soundscapes.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        existing = None
    if isinstance(existing, dict):
        # A setting that did not exist when the folder was written counts as its default.
        existing = {**_as_yaml_types(SoundscapeConfig()), **existing}
    if existing == settings:
        return True
    reason = "is not empty and contains no soundscapes"
    if isinstance(existing, dict):
        different = sorted(key for key in existing.keys() | settings.keys() if existing.get(key) != settings.get(key))
        reason = f"contains soundscapes with other settings ({', '.join(different)})"
    raise FileExistsError(f"{out} {reason}; choose a new folder or remove this one")


def _as_yaml_types(config: SoundscapeConfig) -> dict[str, Any]:
    """Convert the settings to YAML types, with lists instead of tuples."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _write_scene(scene: Scene, root: Path, config: SoundscapeConfig, materials: Materials) -> _WrittenScene:
    audio, events = render(scene, config, materials)
    _write_audio(root / scene.file_name, audio, config)
    captions, phrases = describe(scene, config, materials)
    return _WrittenScene(scene, captions, [phrase for group in phrases for phrase in group], events)


def _write_audio(path: Path, audio: np.ndarray, config: SoundscapeConfig) -> None:
    samples = np.round(audio * 32767).astype(np.int16)
    with path.open("wb") as file:  # soundfile takes only names in UTF-8
        soundfile.write(file, samples, config.sample_rate, format="WAV", subtype="PCM_16")


def _write_tables(root: Path, written: list[_WrittenScene], config: SoundscapeConfig, names: Sequence[str]) -> None:
    count = config.captions_per_clip
    columns = ["caption"] if count == 1 else [f"caption_{column}" for column in range(1, count + 1)]
    for split in SPLITS:
        rows = [(item.scene.file_name, *item.captions) for item in written if item.scene.split == split]
        if rows:
            _write_csv(root / f"{split}.csv", ("file_name", *columns), rows)
    columns = ["file_name", "event", "phrase", "start", "end", *["recording"] * bool(config.recordings)]
    events = (
        (item.scene.file_name, placed.event.name, phrase, f"{placed.start:.4f}", f"{placed.end:.4f}", placed.recording)
        for item in written
        for placed, phrase in zip(item.events, item.phrases, strict=True)
    )
    _write_csv(root / "events.csv", columns, (row[: len(columns)] for row in events))
    tags = (
        (item.scene.file_name, *(int(any(placed.event.name == name for placed in item.events)) for name in names))
        for item in written
    )
    _write_csv(root / "tags.csv", ("file_name", *names), tags)
    if config.twins:
        test = [item.scene.file_name for item in written if item.scene.split == "test"]
        twins = zip(test[0 : 2 * config.twins : 2], test[1 : 2 * config.twins : 2], strict=True)
        _write_csv(root / "twins.csv", ("file_name", "twin"), twins)


def _write_pool(root: Path, config: SoundscapeConfig, progress: bool, processes: int | None) -> None:
    recordings = plan_pool(config)
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    with closing(map_in_order(recordings, partial(_write_recording, root=root, config=config), processes)) as results:
        phrases = list(progress_bar(results, "pool" if progress else None, len(recordings), "recording"))
    _write_csv(root / "meta" / "esc50.csv", ESC50_COLUMNS, (recording.esc50_row for recording in recordings))
    names = (recording.file_name for recording in recordings)
    _write_csv(root / "train.csv", ("file_name", "caption"), zip(names, phrases, strict=True))


def _write_recording(recording: Recording, root: Path, config: SoundscapeConfig) -> str:
    """Write the audio of a recording and return the phrase that names the event."""
    audio, phrase = render_recording(recording, config)
    _write_audio(root / recording.file_name, audio, config)
    return phrase


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    # File names need not be UTF-8; their other bytes are escaped.
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
