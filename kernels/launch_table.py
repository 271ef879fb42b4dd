"""Tuned launch configurations that override the heuristics: a table written by the user, or the packaged one.

A table is JSON: `{"entries": [{"gpu", "kernel", "dtype", "tokens", "chunked", "D", "launch": {...}}, ...]}`. An entry
applies to one GPU model, one kernel, one dtype, one length class of captions, and rows packed to D channels.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

VARIABLE = "ATK_LAUNCH_TABLE"
PACKAGED = Path(__file__).with_name("launch_table.json")

Entry: TypeAlias = dict[str, Any]  # as parsed from JSON
_Key: TypeAlias = tuple[str, str, str, int, bool, int]  # gpu, kernel, dtype, tokens, chunked, D
_Allowed: TypeAlias = Mapping[str, Sequence[str | int | bool] | None]  # None: any value

_POWERS = [2**k for k in range(4, 11)]
_KEYS: _Allowed = {
    "gpu": None,
    "kernel": ["forward", "grad_audio", "grad_text"],
    "dtype": ["float32", "bfloat16", "float16"],
    "tokens": [8, 16, 32, 64, 128],
    "chunked": [False, True],
    "D": [32, *range(64, 4097, 64)],
    "launch": None,
}
_LAUNCH: _Allowed = {
    "frames": [16, 32, 64, 128],  # the winner indices leave room for reads of 128
    "channels": _POWERS,
    "warps": [1, 2, 4, 8, 16],
    "stages": list(range(1, 9)),
}


def path() -> str | None:
    """The table to use: the one that ATK_LAUNCH_TABLE names, or else the packaged one, if there is one."""
    return os.environ.get(VARIABLE) or _packaged()


def lookup(
    table: str | None, gpu: str, kernel: str, dtype: str, tokens: int, chunked: bool, D: int
) -> dict[str, Any] | None:
    """The launch configuration for this case, or None if the table at path `table` has no entry for it.

    Raises:
        ValueError: the table cannot be read, or one of its entries is invalid.
    """
    return None if table is None else _read(table).get((gpu, kernel, dtype, tokens, chunked, D))


def write(path: str | os.PathLike[str], entries: list[Entry]) -> None:
    """Writes a table after validating its entries.

    Raises:
        ValueError: an entry is invalid.
    """
    _index(entries, str(path))
    Path(path).write_text(json.dumps({"entries": entries}, indent=1) + "\n")


@lru_cache
def _packaged() -> str | None:
    return str(PACKAGED) if PACKAGED.exists() else None


@lru_cache
def _read(path: str) -> dict[_Key, dict[str, Any]]:
    try:
        entries = json.loads(Path(path).read_text())["entries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"launch table {path} ({VARIABLE}) cannot be read: {type(error).__name__}: {error}") from error
    return _index(entries, path)


def _index(entries: list[Entry], path: str) -> dict[_Key, dict[str, Any]]:
    table: dict[_Key, dict[str, Any]] = {}
    for i, entry in enumerate(entries):
        try:
            _check(entry)
        except ValueError as error:
            raise ValueError(f"launch table {path} ({VARIABLE}), entry {i}: {error}") from None
        key = (entry["gpu"], entry["kernel"], entry["dtype"], entry["tokens"], entry["chunked"], entry["D"])
        table[key] = entry["launch"]
    return table


def _check(entry: Entry) -> None:
    """Raises ValueError if an entry is invalid."""
    _check_values(entry, _KEYS)
    launch = entry["launch"]
    forward = entry["kernel"] == "forward"
    wanted = {**_LAUNCH, "stationary": [False, True]} if forward else {**_LAUNCH}
    if isinstance(launch, dict) and "registers" in launch:
        wanted["registers"] = [128, 255]  # the limits that the heuristics set
    _check_values(launch, wanted)
    if entry["D"] % launch["channels"]:
        raise ValueError(f"channels must divide D = {entry['D']}; got {launch['channels']}")
    if forward and launch["stationary"] and (entry["chunked"] or entry["D"] != launch["channels"]):
        raise ValueError("stationary needs captions that fit one tile: chunked must be false and channels must equal D")


def _check_values(values: object, wanted: _Allowed) -> None:
    if not isinstance(values, dict) or set(values) != set(wanted):
        raise ValueError(f"must have exactly the keys {', '.join(wanted)}; got {values!r}")
    for name, allowed in wanted.items():
        # Compare types too: True == 1 in Python, but not here.
        if allowed and not any(values[name] == value and type(values[name]) is type(value) for value in allowed):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {values[name]!r}")
