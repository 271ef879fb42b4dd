"""Writing a synthetic data set as ordinary files."""

import csv
import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import yaml
from tqdm import tqdm

from .captions import describe
from .config import SoundscapeConfig
from .events import class_names
from .pool import ESC50_COLUMNS, Recording, plan_pool, render_recording
from .scenes import SPLITS, Placed, Scene, plan, render

FORMAT = 1  # raised whenever the same settings come to write other bytes
_SCENES_A_PROCESS = 100  # fewer are written sooner by one process than a second one starts


@dataclasses.dataclass(frozen=True)
class _Written:
    scene: Scene
    captions: list[str]
    phrases: list[str]
    events: list[Placed]


def write_soundscapes(
    out: str | os.PathLike, config: SoundscapeConfig, progress: bool = True, processes: int | None = None
) -> Path:
    """Write the data set of `config` to the folder `out` and return its path.

    The files: train.csv, val.csv, test.csv (file_name, caption), audio/SPLIT/NNNNN.wav (16 bit), events.csv (file_name,
    event, phrase, start, end in seconds), tags.csv (file_name and a 0/1 column for each class), twins.csv (file_name,
    twin) if there are twins, soundscapes.yaml (the settings), and with `config.pool` the folder pool/ of single events:
    audio/*.wav, meta/esc50.csv (as in ESC-50) and train.csv (file_name, caption). They depend on `config` alone, not on
    `processes` (None: one for each CPU). The folder appears whole at the end; an interrupted run leaves none. A folder
    which holds the data set of the same `config` is kept and returned at once.

    Raises FileExistsError if `out` is a file or a non-empty folder that holds anything else, and ValueError if `config`
    asks for more different scenes than there are.
    """
    out = Path(out).resolve()
    settings = {"format": FORMAT, **_plain(config)}
    if _already_there(out, settings):
        if progress:
            print(f"{out} already holds these soundscapes", file=sys.stderr)
        return out
    scenes = plan(config)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_out = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    try:
        for split in SPLITS:
            if scenes[split]:
                (partial_out / "audio" / split).mkdir(parents=True)
        order = [scene for split in SPLITS for scene in scenes[split]]
        # Closed before the folder is removed, so that no process still writes to it.
        with closing(_work(order, partial(_write_scene, root=partial_out, config=config), processes)) as work:
            written = list(tqdm(work, "soundscapes", len(order), unit="scene", disable=not progress))
        _write_tables(partial_out, written, config)
        if config.pool:
            _write_pool(partial_out / "pool", config, progress, processes)
        (partial_out / "soundscapes.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        os.replace(partial_out, out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    return out


def _already_there(out: Path, settings: dict) -> bool:
    """Whether `out` holds the data set of `settings`; raises FileExistsError if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = yaml.safe_load((out / "soundscapes.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        found = None
    if isinstance(found, dict):
        # A folder written before a setting existed holds its default.
        found = {**_plain(SoundscapeConfig()), **found}
    if found == settings:
        return True
    reason = "is not empty and holds no soundscapes"
    if isinstance(found, dict):
        different = sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key))
        reason = f"holds soundscapes with other settings ({', '.join(different)})"
    raise FileExistsError(f"{out} {reason}; name a new folder or remove this one")


def _plain(config: SoundscapeConfig) -> dict:
    """The settings as YAML knows them: lists for tuples."""
    values = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _work(items: Sequence, write: partial, processes: int | None) -> Iterator:
    """`write` of each scene or recording in order, over processes where there is enough to do."""
    count = min(processes or _cpus(), -(-len(items) // _SCENES_A_PROCESS))
    if count == 1:
        yield from map(write, items)
        return
    # A forked child needs no second import and runs numpy alone, so threads that it did not inherit are not missed.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    # Ctrl-C is for the parent, which stops the others.
    quiet = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(count, mp_context=context, initializer=quiet) as pool:
        try:
            yield from pool.map(write, items, chunksize=16)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_scene(scene: Scene, root: Path, config: SoundscapeConfig) -> _Written:
    audio, events = render(scene, config)
    _write_audio(root / scene.file_name, audio, config)
    captions, phrases = describe(scene, config)
    return _Written(scene, captions, [phrase for group in phrases for phrase in group], events)


def _write_audio(path: Path, audio: np.ndarray, config: SoundscapeConfig) -> None:
    samples = np.round(audio * 32767).astype(np.int16)
    soundfile.write(path, samples, config.sample_rate, subtype="PCM_16")


def _write_tables(root: Path, written: list[_Written], config: SoundscapeConfig) -> None:
    count = config.captions_per_clip
    columns = ["caption"] if count == 1 else [f"caption_{number}" for number in range(1, count + 1)]
    for split in SPLITS:
        rows = [(item.scene.file_name, *item.captions) for item in written if item.scene.split == split]
        if rows:
            _write_csv(root / f"{split}.csv", ("file_name", *columns), rows)
    events = (
        (item.scene.file_name, placed.event.name, phrase, f"{placed.start:.4f}", f"{placed.end:.4f}")
        for item in written
        for placed, phrase in zip(item.events, item.phrases, strict=True)
    )
    _write_csv(root / "events.csv", ("file_name", "event", "phrase", "start", "end"), events)
    names = class_names(config.classes, config.similar)
    tags = (
        (item.scene.file_name, *(int(any(placed.event.name == name for placed in item.events)) for name in names))
        for item in written
    )
    _write_csv(root / "tags.csv", ("file_name", *names), tags)
    if config.twins:
        test = [item.scene.file_name for item in written if item.scene.split == "test"]
        twins = ((test[number], test[number + 1]) for number in range(0, 2 * config.twins, 2))
        _write_csv(root / "twins.csv", ("file_name", "twin"), twins)


def _write_pool(root: Path, config: SoundscapeConfig, progress: bool, processes: int | None) -> None:
    recordings = plan_pool(config)
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    with closing(_work(recordings, partial(_write_recording, root=root, config=config), processes)) as work:
        phrases = list(tqdm(work, "pool", len(recordings), unit="recording", disable=not progress))
    _write_csv(root / "meta" / "esc50.csv", ESC50_COLUMNS, (recording.esc50_row for recording in recordings))
    names = (recording.file_name for recording in recordings)
    _write_csv(root / "train.csv", ("file_name", "caption"), zip(names, phrases, strict=True))


def _write_recording(recording: Recording, root: Path, config: SoundscapeConfig) -> str:
    """Writes the audio and returns the phrase that names the event."""
    audio, phrase = render_recording(recording, config)
    _write_audio(root / recording.file_name, audio, config)
    return phrase


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
