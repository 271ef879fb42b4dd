"""Recipes: the settings of a run as YAML, in which names in braces stand for data sets and files of the user."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atk.extras import optional_imports
from atk.models.saved import load_yaml
from atk.train import aligned, difference, semisupervised
from atk.train.config import TrainConfig

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"\{(\w+)\}")


class _Method(NamedTuple):
    config: type[TrainConfig]
    train: Any


METHODS = {
    "aligned": _Method(aligned.AlignedConfig, aligned.train),
    "difference": _Method(difference.DifferenceConfig, difference.train),
    "semisupervised": _Method(semisupervised.SemiSupervisedConfig, semisupervised.train),
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a run, or a checkpoint to evaluate as it is.

    Attributes:
        name: file, without suffix.
        method: training method; None if nothing is trained.
        settings: the settings that differ from the defaults of the method, nested as in a run's config.yaml.
        checkpoint: model to evaluate if nothing is trained.
        tokenizer: its tokenizer, if it is a published file.
    """

    name: str
    method: str | None
    settings: dict[str, Any]
    checkpoint: str | None = None
    tokenizer: str | None = None

    @classmethod
    def read(cls, name: str, small: bool = False) -> "Recipe":
        """Read a recipe and those that it extends; `small` puts the settings of the small scale on top."""
        values = _read(_FOLDER / f"{name}.yaml")
        method = values.get("method")
        if small and method is not None:
            values = _merged(values, _read(_FOLDER / "small" / f"{method}.yaml"))
        return cls(name, method, values.get("settings", {}), values.get("checkpoint"), values.get("tokenizer"))

    @property
    def sources(self) -> list[str]:
        """The names in braces, in order."""
        texts = [self.checkpoint, self.tokenizer, *_strings(self.settings)]
        return list(dict.fromkeys(name for text in texts if text for name in _NAME.findall(text)))

    def resolved(self, sources: Mapping[str, str]) -> dict[str, Any]:
        """The settings with paths for the names in braces; names without a path stay."""
        return _replaced(self.settings, sources)

    def config(self, sources: Mapping[str, str], **settings: Any) -> TrainConfig:
        """The configuration of a run.

        Args:
            sources: path of each name in braces.
            settings: further settings, such as `out` and `seed`.

        Raises:
            ValueError: a setting is unknown or out of range.
        """
        assert self.method is not None
        return configure(METHODS[self.method].config, self.resolved(sources) | settings)


def path_of(text: str | None, sources: Mapping[str, str]) -> str | None:
    """A text with paths for the names in braces."""
    return None if text is None else _replaced(text, sources)


def configure(make: type[TrainConfig], settings: dict[str, Any]) -> TrainConfig:
    """A configuration from nested settings, checked like those of a YAML file; raises ValueError."""
    with optional_imports:
        from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(make)
    try:
        values = parser.instantiate(parser.parse_object(settings))
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return make(**{field.name: values[field.name] for field in dataclasses.fields(make)})


def _read(path: Path) -> dict[str, Any]:
    values = load_yaml(path)
    base = values.pop("extends", None)
    return values if base is None else _merged(_read(path.parent / base), values)


def _merged(base: Any, top: Any) -> Any:
    """`base` with the values of `top`, mapping by mapping."""
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    return base | {name: _merged(base.get(name), value) for name, value in top.items()}


def _strings(values: Any) -> list[str]:
    if isinstance(values, str):
        return [values]
    items = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return [text for item in items for text in _strings(item)]


def _replaced(values: Any, sources: Mapping[str, str]) -> Any:
    if isinstance(values, str):
        return _NAME.sub(lambda match: sources.get(match[1], match[0]), values)
    if isinstance(values, dict):
        return {name: _replaced(value, sources) for name, value in values.items()}
    return [_replaced(value, sources) for value in values] if isinstance(values, list) else values
