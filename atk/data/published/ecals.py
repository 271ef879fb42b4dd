"""ECALS in the layout of TTMR (music-text-representation): tags of the Million Song Dataset, audio as NumPy files."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atk.data.published.clips import Contents, PublishedClip, Source, label_caption, read_json
from atk.data.published.pickles import read_pickle

# Keys of ecals_track_split.json; "extra" tracks are trained on.
_SPLITS = {"train_track": "train", "extra_track": "train", "valid_track": "val", "test_track": "test"}
_IDENTIFIERS = ("MSD_id_to_7D_id.pkl", "7D_id_to_path.pkl")
TABLES = ("annotation.json", "ecals_tags.json", "ecals_track_split.json", "multiquery_samples.json", *_IDENTIFIERS)
# The tags that TTMR calls MSD-50, a part of those of ECALS.
_MSD50 = (
    "rock", "pop", "indie", "alternative", "electronic", "hip hop", "metal", "jazz", "punk", "folk", "alternative rock",
    "indie rock", "dance", "hard rock", "00s", "soul", "hardcore", "80s", "country", "classic rock", "punk rock",
    "blues", "chillout", "experimental", "heavy metal", "death metal", "90s", "reggae", "progressive rock", "ambient",
    "acoustic", "beautiful", "british", "rnb", "funk", "metalcore", "mellow", "world", "guitar", "trance", "indie pop",
    "christian", "house", "spanish", "latin", "psychedelic", "electro", "piano", "70s", "progressive metal",
)  # fmt: skip


def read_ecals(source: Source) -> Contents:
    """Read ECALS: `annotation.json`, `ecals_track_split.json`, `ecals_tags.json`, and the files that lead to the audio.

    The captions are the tags. The tracks of `multiquery_samples.json` are also in `multiquery.csv`.
    """
    tables = {name: source.tree.table(name) for name in TABLES}
    annotation, tags, split = (tables[name] for name in TABLES[:3])
    if annotation is None or tags is None or split is None:
        source.missing(*(name for name in TABLES[:3] if tables[name] is None))
    queries = tables["multiquery_samples.json"]
    multiquery = set(map(str, _mapping(queries, read_json(queries)))) if queries is not None else set()
    identifiers, paths = (_read_mapping(source, tables[name], name) for name in _IDENTIFIERS)
    tracks = _mapping(annotation, read_json(annotation))
    splits = {
        str(track): _SPLITS[key]
        for key, names in _mapping(split, read_json(split)).items()
        if key in _SPLITS
        for track in _list(split, names, "tracks")
    }

    def clips() -> Iterator[PublishedClip]:
        for track, role in splits.items():
            roles = (role, "multiquery") if track in multiquery else (role,)
            if track not in tracks:
                source.leave_out("no entry in annotation.json", track, roles)
                continue
            path = str(paths.get(identifiers.get(track), ""))  # such as 8/9/123.clip.mp3
            audio = source.tree.locate(filter(None, (path, track)), path.split("/")[:-1])
            labels = _tags_of(tracks[track], f"{annotation}: {track}")
            yield PublishedClip(track, roles, audio, label_caption(labels), labels)

    vocabulary = list(map(str, _list(tags, read_json(tags), "tags")))
    return Contents(clips(), {"ecals": vocabulary, "msd50": [tag for tag in _MSD50 if tag in set(vocabulary)]})


def _tags_of(entry: Any, where: str) -> list[str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("tag"), list):
        raise ValueError(f"{where} lacks the list tag")
    return list(map(str, entry["tag"]))


def _list(path: Path, content: Any, items: str) -> Iterable[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{path}: not a list of {items}")
    return content


def _mapping(path: Path, content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping")
    return content


def _read_mapping(source: Source, path: Path | None, name: str) -> Mapping[Any, Any]:
    if path is None:
        source.notes.append(f"no {name}, so that audio is looked for by the identifiers of the tracks")
        return {}
    return read_pickle(path, dict, "mapping of text")
