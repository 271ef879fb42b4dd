"""The runs of a table: trains and evaluates those that are missing, and continues those that were interrupted."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atk.extras import optional_imports
from atk.models.saved import load_yaml
from atk.recipes import measure
from atk.recipes.recipe import METHODS, Recipe, path_of
from atk.recipes.sources import missing
from atk.recipes.tables import Row, Table
from atk.train.checkpoint import write_atomically
from atk.train.config import TrainConfig
from atk.train.interrupts import interrupts
from atk.train.trainer import Interrupted, TrainingError

_RECIPE = "recipe.yaml"  # in a run folder: what it was started with
_EVALUATED = "data"  # in an evaluation: the path of the data set


@dataclass(frozen=True)
class Machine:
    """What the runs may use. Results depend on `devices` and `micro_batch` a little: batch norms and dropout see parts.

    Attributes:
        device: as in `atk train`.
        devices: number of ranks, one device each.
        workers, micro_batch: as in `atk train`; None = the recipe's.
    """

    device: str = "auto"
    devices: int = 1
    workers: int | None = None
    micro_batch: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the runs."""
        given = {"device": self.device, "workers": self.workers, "micro_batch": self.micro_batch}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Job:
    """A run of a row, or the evaluation of a checkpoint.

    Attributes:
        table: the table.
        row: the row.
        recipe: its recipe.
        seed: seed; None if nothing is trained.
        folder: run folder.
        sources: path of each data set and file that the user has.
    """

    table: Table
    row: Row
    recipe: Recipe
    seed: int | None
    folder: Path
    sources: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the row and the seed."""
        return self.row.name if self.seed is None else f"{self.row.name}, seed {self.seed}"

    @property
    def needs(self) -> list[str]:
        """Options that are missing."""
        return missing(dict.fromkeys([*self.recipe.sources, self.row.target]), self.sources)

    @property
    def state(self) -> str:
        """ "complete", "trained", "started", or "not started"."""
        states = {self.result: "complete", self.folder / "summary.json": "trained", self.folder / _RECIPE: "started"}
        return next((state for path, state in states.items() if path.is_file()), "not started")

    @property
    def result(self) -> Path:
        """File of the evaluation."""
        return self.folder / f"evaluation_{self.row.target}.json"

    @property
    def fallback(self) -> str | None:
        """The split that a captioner was evaluated on because the data have no test split."""
        if self.recipe.method != "difference":
            return None
        split = json.loads((self.folder / "summary.json").read_text())["split"]
        return None if split == "test" else split

    def config(self, machine: Machine) -> TrainConfig:
        """The configuration of the run; raises ValueError."""
        return self.recipe.config(self.sources, out=str(self.folder), seed=self.seed, **machine.settings)

    def run(self, machine: Machine) -> dict[str, Any]:
        """The evaluation, after whatever it needs has been computed.

        Raises:
            ValueError, FileNotFoundError, AudioError: as in training and evaluation, or the run folder was started
                with other settings.
            TrainingError, Interrupted, RankLost: see `atk.train.trainer.Trainer.fit`.
        """
        self.check(machine)
        data = self.sources[self.row.target]
        if self.result.is_file():
            return json.loads(self.result.read_text())
        if not (self.folder / _RECIPE).is_file():
            self._claim_folder()
        if self.recipe.method is None:
            source, tokenizer = (
                path_of(self.recipe.checkpoint, self.sources),
                path_of(self.recipe.tokenizer, self.sources),
            )
            assert source is not None
            result = measure.evaluate(self.table.evaluation, source, tokenizer, data, machine.device, machine.workers)
        else:
            if not (self.folder / "summary.json").is_file():
                _train(self.recipe.method, self.config(machine), self.folder, machine.devices)
            if self.recipe.method == "difference":
                result = json.loads((self.folder / "summary.json").read_text())["metrics"]
            else:
                result = measure.evaluate(
                    self.table.evaluation, self.folder, None, data, machine.device, machine.workers
                )
        result = {_EVALUATED: data} | result
        write_atomically(self.result, json.dumps(result, indent=2) + "\n")
        return result

    def check(self, machine: Machine) -> None:
        """Check the settings, and that the run and its evaluation, if there are any, have the same ones.

        Raises:
            ValueError: a setting is out of range, or another one than before.
        """
        if self.recipe.method is not None:
            self.config(machine)
        if (path := self.folder / _RECIPE).is_file() and (saved := load_yaml(path)) != self._settings:
            raise ValueError(
                f"{self.folder} was started with other settings ({_first_difference(saved, self._settings)}); "
                "choose another --out or remove this run"
            )
        data = self.sources[self.row.target]
        if self.result.is_file() and (before := json.loads(self.result.read_text()).get(_EVALUATED, data)) != data:
            raise ValueError(
                f"{self.result} is the evaluation on {before}, not on {data}; choose another --out or remove it"
            )

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "checkpoint": path_of(self.recipe.checkpoint, self.sources),
            "settings": self.recipe.resolved(self.sources),
        }

    def _claim_folder(self) -> None:
        """Write down the settings of the run."""
        with optional_imports:
            import yaml

        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / _RECIPE, yaml.safe_dump(self._settings, sort_keys=False))


def jobs(
    table: Table, rows: Sequence[Row], seeds: Sequence[int], runs: Path, sources: Mapping[str, str], small: bool
) -> Iterator[Job]:
    """The runs of some rows, all of the first seed before any of the second."""
    for seed in seeds:
        for row in rows:
            recipe = Recipe.read(row.recipe, small)
            if recipe.method is not None:
                yield Job(table, row, recipe, seed, runs / row.recipe / f"seed{seed}", sources)
            elif seed == seeds[0]:
                yield Job(table, row, recipe, None, runs / row.recipe, sources)


def _train(method: str, config: TrainConfig, folder: Path, devices: int) -> None:
    """Train, going on where an earlier call stopped: in this process, or in one process for each of several devices."""
    if devices == 1:
        METHODS[method].train(config, resume=True)
        gc.collect()  # the model of this run, before there is one of the next
        return
    path = folder / "launched.yaml"
    config.save(path)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    command = [*launcher, "-m", "atk", "train", method, "--config", str(path), "--resume"]
    with interrupts() as stop, subprocess.Popen(command) as process:
        while process.poll() is None:
            if stop.wait(0.5):
                process.terminate()
                process.wait()
                raise Interrupted(f"{folder}: stopped; the same command continues the run")
    if process.returncode:
        raise TrainingError(f"{folder}: training on {devices} devices ended with exit code {process.returncode}")


def _first_difference(saved: Any, wanted: Any, name: str = "") -> str:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in [*saved, *wanted]:
            if saved.get(key) != wanted.get(key):
                return _first_difference(saved.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    return f"{name}: {saved!r}, now {wanted!r}"
