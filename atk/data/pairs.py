"""Tar shards of audio and captions in WebDataset layout. A shard is read once; the index of its pairs is cached."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atk.data import codecs
from atk.data.audio import AudioError, audio_info
from atk.data.cache import cache_name, read_index, write_index
from atk.data.captions import Clip, Split, describe_skipped
from atk.data.containers import Unusable
from atk.data.headers import shared_index
from atk.data.listing import AUDIO_SUFFIXES, UNSUPPORTED_SUFFIXES, audio_suffixes, is_hidden, why_left_out
from atk.data.progress import progress_bar
from atk.data.remote import is_url
from atk.data.shards import Member, Shard, tar_members
from atk.data.texts import caption_names, captions_in, normalized
from atk.ops.user_cache import cache_folder

_LAYOUT = 3  # version of the cached index
_THREADS = 4  # shards to read at a time
_JSON, _TXT = ".json", ".txt"
_ANY_AUDIO = frozenset((*AUDIO_SUFFIXES, *UNSUPPORTED_SUFFIXES))

Sample = dict[str, Member]  # the members of a shard whose names differ only in the suffix, by suffix


@dataclass
class ShardIndex:
    """The audio files of a shard.

    Attributes:
        size, stamp: of the shard, as in `Shard`.
        audio: name, offset, size, captions, why there are none ("" if there are), seconds, sample rate, and channels of
            each audio file.
        skipped: name of each member that cannot be used, the reason, and the number of audio files before it; the name
            is "" for the shard itself.
    """

    size: int
    stamp: str
    audio: list[tuple[str, int, int, list[str], str, float, int, int]] = field(default_factory=list)
    skipped: list[tuple[str, str, int]] = field(default_factory=list)

    def add_fault(self, name: str, reason: str) -> None:
        """Note that a member cannot be used."""
        self.skipped.append((name, reason, len(self.audio)))

    def faults(self, needs_captions: bool) -> list[tuple[str, str]]:
        """(name, reason) of what cannot be used, in the order of the shard."""
        faults = [(place, 0, name, reason) for name, reason, place in self.skipped]
        if needs_captions:
            faults += [(place, 1, name, fault) for place, (name, *_, fault, _, _, _) in enumerate(self.audio) if fault]
        return [(name, reason) for *_, name, reason in sorted(faults, key=lambda fault: fault[:2])]


def read_shards(
    shards: dict[str, str],
    on_error: str,
    source: str,
    caption_column: str | None = None,
    *,
    needs_captions: bool = True,
) -> Split:
    """Read the pairs of tar shards, in the order of the shards and of the audio files in each of them.

    A pair is an audio file and a `.json` or `.txt` file of the same name in the same shard. The JSON has the captions
    as a string or a list of strings under `caption_column`; without it, the text file is used. Of several audio files
    of the same name in different formats, the first one that libsndfile reads is used. Other members are ignored.

    Args:
        shards: path of each shard, by its name in messages and in the file names of the clips.
        on_error: "skip" or "raise", as in `read_split`.
        source: what lists the shards, for messages.
        caption_column: key of the captions; None is the first that exists of caption, text, and captions.
        needs_captions: whether audio without a caption cannot be used.

    Raises:
        FileNotFoundError: a shard does not exist.
        ValueError: no pair is usable.
        AudioError: with `on_error="raise"`, a shard or a pair cannot be used.
    """
    clips: list[Clip] = []
    signals: Counter[tuple[int, int]] = Counter()
    skipped: list[tuple[str, str]] = []
    paths = list(shards.values())
    indices = shared_index(repr((paths, caption_column)), lambda: list(_indices(paths, caption_column)))
    for (name, path), index in zip(shards.items(), indices, strict=True):
        faults = [(f"{name}:{member}" if member else name, reason) for member, reason in index.faults(needs_captions)]
        if faults and on_error == "raise":
            raise AudioError(*faults[0])
        skipped += faults
        shard = Shard(path, index.size, index.stamp)
        for member, offset, size, captions, fault, seconds, rate, channels in index.audio:
            if fault and needs_captions:
                continue
            clips.append(Clip(f"{name}:{member}", Member(shard, member, offset, size), tuple(captions), seconds))
            signals[rate, channels] += 1
    if not clips:
        raise ValueError(f"{source}: no usable clip; {describe_skipped(skipped, 3) or 'its shards have no audio'}")
    return Split(clips, skipped, signals=signals)


def _indices(paths: Sequence[str], caption_column: str | None) -> Iterator[ShardIndex]:
    """The index of each shard, in order."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        indices = pool.map(lambda path: _index(path, caption_column), paths)
        yield from progress_bar(indices, "index", len(paths), "shard")
    finally:
        pool.shutdown(cancel_futures=True)


def _index(path: str, caption_column: str | None) -> ShardIndex:
    """The index of a shard, from the cache if the shard has not changed."""
    shard = Shard.find(path)
    where = [_LAYOUT, path if is_url(path) else os.path.abspath(path), caption_column]  # noqa: PTH100  # keeps links
    key = [*where, shard.size, shard.stamp, codecs.has_av()]
    file = cache_folder() / "shards" / f"{cache_name(*where)}.json"
    cached = _cached_index(file, key)
    if cached is not None:
        return cached
    index = ShardIndex(shard.size, shard.stamp)
    try:
        shard.read_ahead()
        _read_pairs(shard, caption_column, index)
    except (AudioError, OSError) as error:  # of the shard as a whole: perhaps it can be read at the next start
        index.add_fault("", error.reason if isinstance(error, AudioError) else str(error))
        return index
    write_index(file, key, asdict(index), path)
    return index


def _cached_index(file: Path, key: list[Any]) -> ShardIndex | None:
    """The index in a cache file; None if it is missing, damaged, or of another shard or version of a shard."""
    values = read_index(file, key)
    try:
        audio = [
            (str(name), int(offset), int(size), list(texts), str(fault), float(seconds), int(rate), int(channels))
            for name, offset, size, texts, fault, seconds, rate, channels in values["audio"]
        ]
        return ShardIndex(
            int(values["size"]),
            str(values["stamp"]),
            audio,
            [(str(n), str(reason), int(place)) for n, reason, place in values["skipped"]],
        )
    except (ValueError, TypeError, KeyError):
        return None


def _read_pairs(shard: Shard, caption_column: str | None, index: ShardIndex) -> None:
    """Fill the index of a shard; raises AudioError, after all that can be read, if the shard itself is damaged."""
    damage = None
    samples: list[Sample] = []
    try:
        _collect(shard, samples)
    except AudioError as error:
        damage = error
    for sample in sorted(samples, key=lambda sample: _main_member(sample).offset):
        _add(sample, caption_column, index)
    if damage is not None:
        raise damage


def _collect(shard: Shard, samples: list[Sample]) -> None:
    """Append the samples of a shard to `samples`; if a name repeats, it begins another sample."""
    latest: dict[str, Sample] = {}
    for encoded, offset, size in tar_members(shard.path):
        name = os.fsdecode(encoded)
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        suffix = suffix.lower()
        if suffix not in (*_ANY_AUDIO, _JSON, _TXT) or any(map(is_hidden, encoded.split(b"/"))):
            continue
        if stem not in latest or suffix in latest[stem]:
            latest[stem] = {}
            samples.append(latest[stem])
        latest[stem][suffix] = Member(shard, name, offset, size)


def _main_member(sample: Sample) -> Member:
    """The audio file of a sample, one that libsndfile reads if there are several; without any, the first member."""
    usable = audio_suffixes()
    # A video beside audio is usually what the audio was extracted from.
    ranks = {
        suffix: (suffix not in _ANY_AUDIO, suffix not in usable, suffix in codecs.CODEC_SUFFIXES) for suffix in sample
    }
    return sample[min(sample, key=ranks.__getitem__)]


def _add(sample: Sample, caption_column: str | None, index: ShardIndex) -> None:
    """Add a sample to the index: to the audio files, or to what cannot be used."""
    audio = _main_member(sample)
    suffix = Path(audio.name).suffix.lower()
    try:
        if suffix not in _ANY_AUDIO:
            raise Unusable("the shard has no audio file of this name")
        if suffix not in audio_suffixes():
            raise Unusable(why_left_out(suffix))
    except Unusable as error:
        index.add_fault(audio.name, str(error))
        return
    captions, fault = [], ""
    try:
        captions = _captions(sample, caption_column)
    except Unusable as error:
        fault = str(error)
    content = audio.read()  # if this fails, it is the shard that cannot be read
    try:
        info = audio_info(audio, content)
    except AudioError as error:
        index.add_fault(audio.name, error.reason)
    else:
        where = audio.name, audio.offset, audio.size
        index.audio.append((*where, captions, fault, info.seconds, info.sample_rate, info.channels))


def _captions(sample: Sample, caption_column: str | None) -> list[str]:
    """The captions of a sample; raises Unusable."""
    if _JSON not in sample and _TXT not in sample:
        raise Unusable("no caption: the shard has no .json or .txt file of this name")
    try:
        if _JSON in sample:
            values = json.loads(sample[_JSON].read())
            if not isinstance(values, dict):
                raise Unusable("its .json is not a mapping of keys to values")
            if _TXT not in sample or caption_names(values, caption_column):
                return captions_in(values, caption_column)
        return normalized([sample[_TXT].read().decode("utf-8-sig")])
    except Unusable:
        raise
    except UnicodeDecodeError:
        raise Unusable("its caption is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise Unusable(f"its .json is not well-formed ({error})") from None
