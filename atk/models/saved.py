"""Saving and loading models: a folder with `config.json` and `model.safetensors`, local or on the hub."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from atk.extras import optional_imports

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WEIGHTS = "model.safetensors"
_CONFIG = "config.json"


def save_model(model: nn.Module, config: "DataclassInstance", folder: str | Path) -> Path:
    """Save `config` and the weights of `model` to `folder`, which is created if needed. Returns the folder."""
    with optional_imports:
        from safetensors.torch import save_model as save_weights

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
    save_weights(model, str(folder / _WEIGHTS))
    return folder


def find_model(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find a saved model in a local folder, or download it from a hub repository.

    Returns:
        Its folder and the contents of its `config.json`.

    Raises:
        ValueError: `name` holds no such model.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name))
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no model: expected {_CONFIG} and {_WEIGHTS} there")
    return folder, json.loads((folder / _CONFIG).read_text())


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights saved by `save_model` into `model`."""
    with optional_imports:
        from safetensors.torch import load_model

    load_model(model, folder / _WEIGHTS)


def _download(name: str) -> Path:
    with optional_imports:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name!r} is neither a local folder nor a hub model: {reason}") from error
