"""What saved models share: a folder with `config.json` and `model.safetensors`, local or on the hub."""

import json
from dataclasses import asdict
from pathlib import Path

from torch import nn

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def save_model(model: nn.Module, folder: str | Path) -> Path:
    """Write `model.config`, a dataclass, and the weights to `folder`, made where there is none; returns it."""
    from safetensors.torch import save_model as save_weights

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    save_weights(model, folder / _WEIGHTS)
    return folder


def find_model(name: str | Path) -> tuple[Path, dict]:
    """The folder and the configuration of a saved model: a local folder, or a hub repository that is downloaded.

    Raises:
        ValueError: there is no such model.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(str(name))
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no model: {_CONFIG} and {_WEIGHTS} are expected there")
    return folder, json.loads((folder / _CONFIG).read_text())


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put the weights that `save_model` wrote into `model`."""
    from safetensors.torch import load_model

    load_model(model, folder / _WEIGHTS)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name!r} is neither a local folder nor a hub model: {reason}") from error
