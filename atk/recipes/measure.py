"""The evaluation of a run by the published protocol of its table, and the columns of the table in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from atk.device import default_workers, pick_device
from atk.eval.protocols import evaluate_protocols
from atk.eval.sources import window_seconds
from atk.models import from_pretrained
from atk.models.clap import CLAP
from atk.recipes.tables import Evaluation, Table

_VOCABULARIES = {"50 tags": "msd50", "1054 tags": "ecals"}  # as `atk data import ecals` names them
_AREAS = {"ROC": "ROC-AUC", "PR": "PR-AUC"}


class Measured(NamedTuple):
    """The columns of a table for one run, and why columns are missing."""

    values: dict[str, float]
    missing: dict[str, str]


def evaluate(
    wanted: Evaluation, source: str | Path, tokenizer: str | None, data: str, device: str, workers: int | None
) -> dict[str, Any]:
    """Evaluate a model with two encoders: "tagging" by the protocols tagging and multi-query, "retrieval" by its own.

    Args:
        wanted: `evaluation` of the table.
        source: run folder, or whatever else `atk evaluate` takes.
        tokenizer: tokenizer of a published file.
        data: data folder.
        device, workers: as in `atk evaluate`.

    Raises:
        ValueError: the source holds no such model, or the data lack what a protocol needs.
    """
    place = pick_device(device)
    model = from_pretrained(source, tokenizer if Path(source).is_file() else None)
    if not isinstance(model, CLAP):
        raise ValueError(f"{source} holds a {type(model).__name__}, but this table needs a CLAP")
    model = model.to(place).eval()
    return evaluate_protocols(
        model,
        data,
        ["tagging", "multi-query"] if wanted == "tagging" else ["retrieval"],
        clip_seconds=window_seconds(source, model),
        workers=default_workers(place) if workers is None else workers,
        progress="evaluate",
    )


def measured(table: Table, evaluation: Mapping[str, Any]) -> Measured:
    """The columns of a table in the evaluation of a run."""
    if table.evaluation == "captions":
        scores, missing = evaluation["input"], evaluation["missing"]
        return Measured(
            {name: scores[name] for name in table.columns if name in scores},
            {name: missing.get(name, "not computed") for name in table.columns if name not in scores},
        )
    if table.evaluation == "retrieval":
        metrics = evaluation["retrieval"]["conventions"]["laion"]["text_to_audio"]
        return Measured({name: metrics[name] for name in table.columns}, {})
    metrics = evaluation["multi-query"]["conventions"]["ttmr"]["text_to_audio"]
    values = metrics | {"MedR": metrics["medRank"]}
    missing = {}
    vocabularies = evaluation["tagging"]["vocabularies"]
    for tags, vocabulary in _VOCABULARIES.items():
        for area, name in _AREAS.items():
            if vocabulary in vocabularies:
                values[f"{tags} {area}"] = vocabularies[vocabulary][name]
            else:
                missing[f"{tags} {area}"] = f"the data have no vocabulary {vocabulary}"
    return Measured({name: values[name] for name in table.columns if name in values}, missing)
