"""Lists of recordings that must not be trained on, because a test set contains them."""

from pathlib import Path

from atk.data.published.clips import Source, read_json
from atk.data.tables import Table

EXCLUDED = "in an exclusion list"
TABLES = ("blacklist_exclude_*.json", "dcase*_excluded_freesound_ids.csv")


def read_exclusions(source: Source) -> dict[str, frozenset[str]]:
    """The identifiers in the exclusion lists of a source, as text without suffixes, by where the recordings come from.

    A list is a JSON file (`{"AudioSet": ["Y....wav"], "FreeSound": ["123"]}`) or a table of Freesound identifiers with
    a column `sound_id`.

    Raises:
        ValueError: a list does not exist or is neither of the two.
    """
    lists: dict[str, set[str]] = {}
    for name in source.exclude:
        path = Path(name) if Path(name).is_file() else source.tree.table(name)
        if path is None:
            raise ValueError(f"exclude: {name} is neither a file nor the name of a list below {source.tree.table_root}")
        if path.suffix.lower() == ".json":
            for origin, identifiers in _mapping(path).items():
                lists.setdefault(origin, set()).update(map(source.tree.without_suffix, identifiers))
        else:
            rows = Table.open(path, ("sound_id",)).records()
            lists.setdefault("FreeSound", set()).update(row["sound_id"].strip() for _, row in rows)
    return {origin: frozenset(identifiers) for origin, identifiers in lists.items()}


def _mapping(path: Path) -> dict[str, list[str]]:
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, list) for value in content.values()):
        raise ValueError(f"{path}: an exclusion list maps the names of sources to lists of identifiers")
    return {origin: list(map(str, identifiers)) for origin, identifiers in content.items()}
