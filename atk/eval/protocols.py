"""Evaluation by published protocols: retrieval, classification, tagging, moments, and detection of events."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from atk.data.published import imported_set
from atk.eval.embed import EmbeddingModel
from atk.eval.moments import MomentConfig
from atk.eval.prompts import PROMPT_NAMES, Prompts
from atk.eval.protocol_metrics import Evaluation, multi_query, retrieval, tagging, zero_shot
from atk.eval.retrieval import SplitEmbedding, embed_split
from atk.eval.timed_protocols import TimedEvaluation, moments, psds, require_psds
from atk.ops.checks import one_of

ProtocolName = Literal["retrieval", "zero-shot", "tagging", "multi-query", "moments", "psds"]
PROTOCOL_NAMES = get_args(ProtocolName)
_CHUNKS = 3  # windows of a clip in TTMR's evaluation
_TIES = "ties count against the model"
_WINDOWS = f"{_TIES}; vectors of windows have unit length before they are averaged"


class Protocol(NamedTuple):
    """What a protocol computes.

    Attributes:
        computes: the metrics.
        after: whose evaluation it follows.
        differs: how it differs from that.
        chunks: number of overlapping windows of each clip; None = consecutive windows.
        needs: files of the data folder that it reads besides the split.
        run: computes the metrics, of an `Evaluation` or, if `timed`, of a `TimedEvaluation`.
        timed: it uses the frames of the clips and the events in events.csv, instead of one vector per clip.
    """

    computes: str
    after: str
    differs: str
    chunks: int | None
    needs: tuple[str, ...]
    run: Callable[[Any], dict[str, Any]]
    timed: bool = False


PROTOCOLS: dict[ProtocolName, Protocol] = {
    "retrieval": Protocol(
        "each caption is a query and a candidate: R@k, mAP@10, and median rank both ways, by three conventions",
        "laion: LAION-AI/CLAP; wavcaps: XinhaoMei/WavCaps; dcase: baseline of DCASE 2023 and 2024",
        f"{_TIES}; captions repeated within a clip count once; sums are divided by the captions of a clip, not by 5",
        None,
        (),
        retrieval,
    ),
    "zero-shot": Protocol(
        "one prompt per tag: accuracy, top 5, and the mean over folds; mAP and lrap if clips have several tags",
        "the publications of the prompts",
        f"{_TIES}; tags without a positive clip are left out of mAP and counted",
        None,
        ("tags.csv",),
        zero_shot,
    ),
    "tagging": Protocol(
        "the tag itself is the query: macro ROC-AUC and PR-AUC for each vocabulary",
        "single-query evaluation of seungheondoh/music-text-representation",
        f"{_WINDOWS}; tags without a positive clip are left out and counted; its transfer to other sets uses 8 windows",
        _CHUNKS,
        ("tags.csv",),
        tagging,
    ),
    "multi-query": Protocol(
        "all tags of a clip are the query: R@k, mAP@10, and median rank from 0",
        "multi-query evaluation of seungheondoh/music-text-representation",
        f"{_WINDOWS}; the median is not corrected by the jackknife, which changes it if the number of clips is odd",
        _CHUNKS,
        (),
        multi_query,
    ),
    "moments": Protocol(
        "the phrase of an event is the query: R1 and mAP of the spans found in the clip, by their IoU",
        "line/lighthouse and jayleicn/moment_detr, standalone_eval (QVHighlights)",
        "events of a clip with the same name and phrase are one query; a query without a span counts as 0",
        None,
        ("events.csv",),
        moments,
        timed=True,
    ),
    "psds": Protocol(
        "the phrases of a class are its query: PSDS1 and PSDS2 of the frames' scores",
        "DESED_task (settings) and fgnt/sed_scores_eval (computation)",
        "scores are cosines, averaged over the most frequent phrases of a class, without smoothing",
        None,
        ("events.csv",),
        psds,
        timed=True,
    ),
}


def protocol_split(name: ProtocolName, folder: str | Path) -> str:
    """The split that a protocol is defined on: "all" for zero-shot if the folder has folds, "multiquery", or "test"."""
    one_of("protocol", name, PROTOCOL_NAMES)
    if name == "multi-query":
        return "multiquery"
    has_folds = all((Path(folder) / table).is_file() for table in ("all.csv", "folds.csv"))
    return "all" if name == "zero-shot" and has_folds else "test"


def check_protocols(
    names: Sequence[ProtocolName],
    folder: str | Path,
    *,
    split: str | None = None,
    prompts: Sequence[Prompts] = (),
    clip_seconds: float | None = 9.91,
) -> None:
    """Check, before anything is embedded, that a data folder and the length of windows are what protocols need.

    Raises:
        ValueError: there is no such protocol or prompt, a file is missing, or there is no length of windows.
    """
    if names and not Path(folder).is_dir():
        raise ValueError(f"protocols need a data folder, got {folder}")
    for name in names:
        _check_protocol(name, Path(folder), split, clip_seconds)
    for prompt in prompts:
        one_of("prompts", prompt, PROMPT_NAMES)
    if prompts and "zero-shot" not in names:
        raise ValueError("prompts are for the protocol zero-shot, which is not among the protocols given")
    folds = Path(folder) / "folds.csv"
    if "zero-shot" in names and imported_set(folder) in ("esc50", "urbansound8k") and not folds.is_file():
        raise ValueError(f"protocol zero-shot needs {folds}, which is missing; import the set again")


def _check_protocol(name: ProtocolName, folder: Path, split: str | None, clip_seconds: float | None) -> None:
    one_of("protocol", name, PROTOCOL_NAMES)
    protocol = PROTOCOLS[name]
    if clip_seconds is None and protocol.timed:
        raise ValueError(f"protocol {name} needs clip_seconds, got null")
    if clip_seconds is None and protocol.chunks:
        raise ValueError(f"protocol {name} needs clip_seconds (9.91 in the published evaluation), got null")
    for table in (*protocol.needs, f"{split or protocol_split(name, folder)}.csv"):
        if not (folder / table).is_file():
            raise ValueError(f"protocol {name} needs {folder / table}, which is missing")
    if name == "psds":
        require_psds()


def evaluate_protocols(
    model: EmbeddingModel,
    folder: str | Path,
    names: Sequence[ProtocolName],
    *,
    split: str | None = None,
    prompts: Sequence[Prompts] = (),
    embedded: SplitEmbedding | None = None,
    spans: MomentConfig | None = None,
    **reading: Any,
) -> dict[str, dict[str, Any]]:
    """Evaluate a model by published protocols (see `PROTOCOLS`).

    Args:
        model: embeds clips and texts.
        folder: data folder.
        names: protocols.
        split: split to use; None = the one that each protocol is defined on (see `protocol_split`).
        prompts: prompts of the protocol zero-shot; none = all that are published for the set.
        embedded: embedding of a split with consecutive windows, which is then not embedded again.
        spans: how the protocol moments makes spans; None = the defaults.
        reading: further arguments of `embed_split`.

    Returns:
        For each protocol, `"split"`, `"chunks"`, the attributes `"computes"`, `"after"`, and `"differs"` of the
        protocol, the number of `"clips"`, the `"skipped"` files as (name, reason), and its metrics by `"conventions"`,
        `"prompts"`, or `"vocabularies"`, in percent except for ranks and counts.

    Raises:
        ValueError: as `check_protocols`, `embed_split`, and the metrics.
    """
    check_protocols(names, folder, split=split, prompts=prompts, clip_seconds=reading.get("clip_seconds", 9.91))
    embeddings: dict[tuple[str, int | None], SplitEmbedding] = {}
    if embedded is not None:
        embeddings[embedded.split, None] = embedded
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        protocol = PROTOCOLS[name]
        key = (split or protocol_split(name, folder), protocol.chunks)
        if protocol.timed:
            given: Any = TimedEvaluation.read(model, folder, key[0], spans, **reading)
        else:
            if key not in embeddings:
                embeddings[key] = embed_split(
                    model, folder, key[0], side_files=False, chunks=protocol.chunks, **reading
                )
            given = Evaluation(model, embeddings[key], prompts)
        results[name] = {
            "split": key[0],
            "chunks": protocol.chunks,
            "computes": protocol.computes,
            "after": protocol.after,
            "differs": protocol.differs,
            "clips": given.clips,
            "skipped": given.skipped,
        } | protocol.run(given)
    return results
