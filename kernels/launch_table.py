"""Measured launch numbers, which override the heuristics: a table that a user tuned, or the one that is packaged.

A table is `{"entries": [{"gpu", "kernel", "dtype", "tokens", "chunked", "D", "launch": {...}}, ...]}`. An entry serves
the GPU of that name, captions of that length class, and rows that are packed to D channels.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

VARIABLE = "ATK_LAUNCH_TABLE"
PACKAGED = Path(__file__).with_name("launch_table.json")
_POWERS = [2**k for k in range(4, 11)]
_KEYS = {
    "gpu": None,
    "kernel": ["forward", "grad_audio", "grad_text"],
    "dtype": ["float32", "bfloat16", "float16"],
    "tokens": [8, 16, 32, 64, 128],
    "chunked": [False, True],
    "D": [32, *range(64, 4097, 64)],
    "launch": None,
}
_LAUNCH = {"frames": _POWERS, "channels": _POWERS, "warps": [1, 2, 4, 8, 16], "stages": list(range(1, 9))}


def find(gpu: str, kernel: str, dtype: str, tokens: int, chunked: bool, D: int) -> dict | None:
    """The launch numbers of the entry for this case, or None.

    Raises:
        ValueError: the table named by ATK_LAUNCH_TABLE cannot be read, or one of its entries cannot be used.
    """
    path = os.environ.get(VARIABLE) or _packaged()
    return None if path is None else _read(path).get((gpu, kernel, dtype, tokens, chunked, D))


def write(path: str | os.PathLike, entries: list[dict]) -> None:
    """Writes a table, after checking its entries."""
    _index(entries, str(path))
    Path(path).write_text(json.dumps({"entries": entries}, indent=1) + "\n")


@lru_cache
def _packaged() -> str | None:
    return str(PACKAGED) if PACKAGED.exists() else None


@lru_cache
def _read(path: str) -> dict[tuple, dict]:
    try:
        entries = json.loads(Path(path).read_text())["entries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"launch table {path} ({VARIABLE}) cannot be read: {type(error).__name__}: {error}") from error
    return _index(entries, path)


def _index(entries: list[dict], path: str) -> dict[tuple, dict]:
    table = {}
    for number, entry in enumerate(entries):
        try:
            _check(entry)
        except ValueError as error:
            raise ValueError(f"launch table {path} ({VARIABLE}), entry {number}: {error}") from None
        table[tuple(entry[name] for name in _KEYS if name != "launch")] = entry["launch"]
    return table


def _check(entry: dict) -> None:
    """Raises ValueError saying what an entry has wrong."""
    _check_values(entry, _KEYS)
    launch, forward = entry["launch"], entry["kernel"] == "forward"
    _check_values(launch, _LAUNCH | ({"stationary": [False, True]} if forward else {}))
    if entry["D"] % launch["channels"]:
        raise ValueError(f"channels must divide D = {entry['D']}; got {launch['channels']}")
    if forward and launch["stationary"] and (entry["chunked"] or entry["D"] != launch["channels"]):
        raise ValueError("stationary captions must fit one tile: not chunked, as many channels as D")


def _check_values(values: dict, wanted: dict[str, list | None]) -> None:
    if not isinstance(values, dict) or set(values) != set(wanted):
        raise ValueError(f"must have exactly {', '.join(wanted)}; got {values!r}")
    for name, allowed in wanted.items():
        # True == 1 in Python, but not here.
        if allowed and not any(values[name] == value and type(values[name]) is type(value) for value in allowed):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {values[name]!r}")
