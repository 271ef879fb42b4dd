"""Saving and loading models: a folder with `config.json` and `model.safetensors`, a run folder, or a hub repository."""

import json
import warnings
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atk.extras import optional_imports

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WEIGHTS = "model.safetensors"
SHARDS = "shards"
_CONFIG = "config.json"


def save_config(config: "DataclassInstance", folder: str | Path) -> Path:
    """Save the configuration of a model to `folder`, which is created if needed. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")
    return folder


def save_weights(model: nn.Module, folder: str | Path) -> None:
    """Save the weights of a model to `folder`."""
    with optional_imports:
        from safetensors.torch import save_model

    save_model(model, str(Path(folder) / WEIGHTS))


def find_model(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find a saved model in a local folder or a run folder (its best checkpoint), or download it from the hub.

    Returns:
        Its folder and the contents of its `config.json`.

    Raises:
        ValueError: `name` holds no such model, or its configuration is damaged.
        FileNotFoundError: `name` is a run folder without a checkpoint.
    """
    folder = model_folder(Path(name))
    if not folder.is_dir():
        folder = _download(str(name))
    if not (folder / _CONFIG).is_file() or not ((folder / WEIGHTS).is_file() or (folder / SHARDS).is_dir()):
        raise ValueError(f"{folder} holds no model: expected {_CONFIG} and {WEIGHTS} there")
    try:
        values = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / _CONFIG}: damaged or cut short ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{folder / _CONFIG}: not the configuration of a model")
    return folder, values


def load_weights(model: nn.Module, folder: Path, others: tuple[str, ...] = ()) -> None:
    """Load the weights of a saved model, or of a checkpoint that has them only in shards, into `model`.

    Args:
        model: the model.
        folder: where its weights are.
        others: first parts of the names of weights that may be there without belonging to `model`.

    Raises:
        ValueError: the file is damaged, or holds the weights of another model.
    """
    with optional_imports:
        from safetensors import SafetensorError
        from safetensors.torch import load_model

    if not (folder / WEIGHTS).is_file():
        _load_shards(model, folder / SHARDS)
        return
    try:
        missing, unexpected = load_model(model, folder / WEIGHTS, strict=not others)
        if strangers := [*missing, *(name for name in unexpected if not name.startswith(others))]:
            raise RuntimeError(f"missing or unexpected: {', '.join(sorted(strangers))}")
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS}: damaged or cut short ({error})") from None
    except RuntimeError as error:  # names or shapes differ
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / WEIGHTS}: not the weights of the model in {_CONFIG} ({reason[:200]})") from None


def _load_shards(model: nn.Module, folder: Path) -> None:
    """Load the whole weights that the ranks of a run have each saved a part of."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # there is no process group, as intended
            dcp.load(weights, checkpoint_id=folder, no_dist=True)  # into the model
    except (CheckpointException, Exception) as error:  # noqa: BLE001 (of many types, depending on what is damaged)
        failures = getattr(error, "failures", None)  # of each rank: (error, traceback)
        reason = " ".join(str(next(iter(failures.values()))[0] if failures else error).split())[:200]
        raise ValueError(f"{folder}: not the weights of the model in {_CONFIG} ({reason})") from None


@contextmanager
def naming_file(path: Path) -> Generator[None, None, None]:
    """A context in which every error in loading a saved model becomes a ValueError that names its file or folder."""
    try:
        yield
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many types, depending on what is damaged
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise ValueError(f"{path}: damaged, or not a model that this version can load ({reason})") from error


def model_folder(path: Path) -> Path:
    """The saved model of a run folder (its best checkpoint), or `path` itself if it is not a run folder.

    Raises:
        FileNotFoundError: the run folder holds no checkpoint.
    """
    return best_or_last(path) if (path / "checkpoints").is_dir() else path


def best_or_last(run: Path) -> Path:
    """The checkpoint to use from a run folder: the best by validation, or the last of a run without validation.

    Raises:
        FileNotFoundError: `run` holds no checkpoint.
    """
    for name in ("best", "last"):
        if (checkpoint := find_checkpoint(run / "checkpoints", name)) is not None:
            return checkpoint
    raise FileNotFoundError(f"{run} holds no checkpoint: expected {run / 'checkpoints' / 'last'}, written by atk train")


def run_folder(source: str | Path) -> Path | None:
    """The run folder, or the one that a checkpoint belongs to; None for other sources."""
    path = Path(source)
    run = path.resolve().parent.parent if path.parent.name == "checkpoints" else path
    return run if (run / "config.yaml").is_file() else None


def run_settings(source: str | Path) -> dict[str, Any]:
    """The settings of the run that a run folder, or a checkpoint in one, belongs to; empty for other sources.

    Raises:
        ValueError: its `config.yaml` is damaged.
    """
    run = run_folder(source)
    return {} if run is None else load_yaml(run / "config.yaml")


def load_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: the file is missing, or does not hold a YAML mapping.
    """
    with optional_imports:
        import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a mapping of settings to values")
    return values


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """The checkpoint called "best" or "last" in the folder `checkpoints` of a run; None if there is none.

    `folder / name` is a folder, a link to one, or a text file with the name of one. If a copied run has lost both
    entries, the last checkpoint is the newest one, and the best is the oldest of several, as only these two are kept.
    """
    if (path := _named(folder, name)) is not None:
        return path
    steps = step_folders(folder)
    if name == "last":
        return steps[-1] if steps else None
    return steps[0] if len(steps) > 1 and _named(folder, "last") is None else None


def step_folders(folder: Path) -> list[Path]:
    """The checkpoints of a run in order of step."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def damaged_file(folder: Path, suffixes: Sequence[str] = (".safetensors", ".json", ".pt")) -> Path | None:
    """The first file of a saved model or checkpoint that is cut short or empty; None if all are whole."""
    checks = {".safetensors": _is_safetensors, ".pt": _is_zip, ".json": _is_json}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return next((path for path in files if path.suffix in suffixes and not checks[path.suffix](path)), None)


def _named(folder: Path, name: str) -> Path | None:
    path = folder / name
    if path.is_file():
        path = folder / path.read_text(encoding="utf-8", errors="replace").strip()
    return path if path != folder and path.is_dir() else None


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(size, path.stat().st_size)))
            ends = [value["data_offsets"][1] for name, value in header.items() if name != "__metadata__"]
            return 8 + size + max(ends, default=0) == path.stat().st_size
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            return False


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _download(name: str) -> Path:
    with optional_imports:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name!r} is neither a local folder nor a hub model: {reason}") from error
