"""WavCaps: captions of AudioSet, BBC, Freesound, and SoundBible recordings."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from atk.data.published.clips import Contents, PublishedClip, Source, read_json
from atk.data.published.exclusions import EXCLUDED, read_exclusions

# Origin, as in exclusion lists, and the names of its folders.
_FOLDERS = {
    "AudioSet": ("AudioSet_SL_flac", "AudioSet_SL", "AudioSet"),
    "BBC": ("BBC_Sound_Effects_flac", "BBC_Sound_Effects"),
    "FreeSound": ("FreeSound_flac", "FreeSound"),
    "SoundBible": ("SoundBible_flac", "SoundBible"),
}
_TABLES = {
    "AudioSet": ("as_final.json",),
    "BBC": ("bbc_final.json",),
    "FreeSound": ("fsd_final.json", "fsd_final_2s.json"),
    "SoundBible": ("sb_final.json",),
}
TABLES = tuple(name for names in _TABLES.values() for name in names)


def read_wavcaps(source: Source) -> Contents:
    """Read the JSON files of WavCaps. All clips are training clips. Exclusion lists leave some of them out."""
    tables = {origin: source.tree.table(*names) for origin, names in _TABLES.items()}
    if not any(tables.values()):
        source.missing(*TABLES)
    source.notes += [f"{origin} is missing: no {_TABLES[origin][0]}" for origin, path in tables.items() if path is None]
    return Contents(_clips(source, tables, read_exclusions(source)))


def _clips(
    source: Source, tables: Mapping[str, Path | None], exclusions: Mapping[str, frozenset[str]]
) -> Iterator[PublishedClip]:
    for origin, path in tables.items():
        excluded = exclusions.get(origin, frozenset())
        for identifier, caption in _captions(path) if path is not None else ():
            if source.tree.without_suffix(identifier) in excluded:
                source.leave_out(EXCLUDED, f"{origin} {identifier}", ("train",))
                continue
            # Freesound and SoundBible have files of the same name.
            audio = source.tree.locate((identifier,), _FOLDERS[origin], only_there=True)
            yield PublishedClip(f"{origin} {identifier}", ("train",), audio, caption)


def _captions(path: Path) -> Iterator[tuple[str, list[str]]]:
    content = read_json(path)
    items = content.get("data") if isinstance(content, dict) else None
    if not isinstance(items, list):
        raise ValueError(f"{path}: lacks the list data")
    for index, item in enumerate(items):
        try:
            identifier, caption = str(item["id"]), item["caption"]
        except (KeyError, TypeError):
            raise ValueError(f"{path}: item {index} of data must have id and caption") from None
        captions = caption if isinstance(caption, list) else [caption]
        yield identifier, [text for text in captions if isinstance(text, str)]  # a clip without any is counted later
