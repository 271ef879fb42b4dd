"""The settings of moments that were chosen for a run, stored in it as moments.json."""

import json
from dataclasses import asdict, fields
from pathlib import Path

from atk.eval.moments import MomentConfig
from atk.models.saved import run_folder
from atk.ops.user_cache import replace_file

_FILE = "moments.json"


def saved_moments(source: str | Path) -> MomentConfig:
    """The settings that belong to a run or to one of its checkpoints; the defaults if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    run = run_folder(source)
    if run is None or not (run / _FILE).is_file():
        return MomentConfig()
    try:
        values = json.loads((run / _FILE).read_text(encoding="utf-8"))
        return MomentConfig(**{field.name: values[field.name] for field in fields(MomentConfig)})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / _FILE}: not the settings of moments ({error}); remove it") from None


def settings_file(source: str | Path) -> Path:
    """The file in a run folder that settings are stored in.

    Raises:
        ValueError: `source` is not a run.
    """
    run = run_folder(source)
    if run is None:
        raise ValueError(f"calibrate: {source} is not a run folder, so there is no place for the settings")
    return run / _FILE


def save_moments(source: str | Path, config: MomentConfig) -> Path:
    """Store settings in a run folder, and return the file.

    Raises:
        ValueError: `source` is not a run.
    """
    path = settings_file(source)
    replace_file(path, (json.dumps(asdict(config), indent=2) + "\n").encode())
    return path
