"""Where the rows of a run go besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow, trackio.

The services write to the run folder, or to this machine, unless their own environment variables name a server.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from atk.extras import optional_imports

_PROJECT = "audio-text-kernels"


class Logger(Protocol):
    """Receives the values of a step, such as "train/loss"."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log values, whose names have a group before a slash."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in `tensorboard/` of the run folder; those of steps after `step` are purged."""

    def __init__(self, out: Path, config: Mapping[str, Any], step: int):
        with optional_imports:
            from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(out / "tensorboard", purge_step=step + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """As in `Logger`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """As in `Logger`."""
        self.writer.close()


class WandB:
    """An offline run of Weights & Biases in `wandb/` of the run folder; `WANDB_MODE=online` uploads it."""

    def __init__(self, out: Path, config: Mapping[str, Any], step: int):
        import wandb  # pyrefly: ignore[missing-import]

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=out.name,
            id=_run_id(out),
            dir=str(out),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        """As in `Logger`."""
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """As in `Logger`."""
        self.run.finish()


class MLflow:
    """A run of MLflow in `mlflow.db` of the run folder, or on the server in `MLFLOW_TRACKING_URI`."""

    def __init__(self, out: Path, config: Mapping[str, Any], step: int):
        import mlflow  # pyrefly: ignore[missing-import]

        self.mlflow = mlflow
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{(out / 'mlflow.db').resolve()}")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT))
        known = out / "mlflow_run"
        if step and known.is_file():
            mlflow.start_run(known.read_text(encoding="utf-8"))
            return
        run = mlflow.start_run(run_name=out.name)
        mlflow.log_params(_flat(config))
        known.write_text(str(run.info.run_id), encoding="utf-8")

    def write(self, values: Mapping[str, float], step: int) -> None:
        """As in `Logger`."""
        allowed = {name.replace("@", "_at_"): value for name, value in values.items()}  # MLflow refuses "@"
        self.mlflow.log_metrics(allowed, step=step)

    def close(self) -> None:
        """As in `Logger`."""
        self.mlflow.end_run()


class Trackio:
    """A run of trackio, which keeps it on this machine unless `TRACKIO_SPACE_ID` names a space."""

    def __init__(self, out: Path, config: Mapping[str, Any], step: int):
        import trackio  # pyrefly: ignore[missing-import]

        self.trackio = trackio
        project = os.environ.get("TRACKIO_PROJECT", _PROJECT)
        trackio.init(project=project, name=_run_id(out), config=dict(config), resume="allow")

    def write(self, values: Mapping[str, float], step: int) -> None:
        """As in `Logger`."""
        self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        """As in `Logger`."""
        self.trackio.finish()


_LOGGERS: dict[str, Callable[[Path, Mapping[str, Any], int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
LOGGERS = tuple(_LOGGERS)


def open_logger(name: str, out: Path, config: Mapping[str, Any], step: int) -> Logger:
    """A logger of a run.

    Args:
        name: one of `LOGGERS`.
        out: run folder.
        config: settings of the run, which the services show.
        step: step that the run resumes from; 0 for a new run.
    """
    return _LOGGERS[name](out, config, step)


def require_loggers(names: Sequence[str]) -> None:
    """Check that the packages of these services are installed; raises ValueError."""
    for name in names:
        if name != "tensorboard" and find_spec(name) is None:
            raise ValueError(f"loggers: needs {name}; pip install {name}")


def _run_id(out: Path) -> str:
    """A name that is the same when the run is resumed."""
    return "-".join(out.resolve().parts[-2:]).replace(" ", "_")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
