"""Write captions for an audio file or for a held-out split, the latter with metrics."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atk.data import Clip, audio_info, one_pass, open_data, read_references
from atk.data.captions import OnError
from atk.data.mixtures import MixConfig, MixtureBatch, MixtureDataset
from atk.data.progress import progress_bar
from atk.data.references import ReferencePool
from atk.data.sets import Data
from atk.data.side_files import read_tags
from atk.eval.caption_listing import SEPARATOR, Captions, class_mentions
from atk.eval.caption_metrics import caption_metrics
from atk.eval.caption_windows import caption_clip
from atk.eval.embed import device_of, evaluating
from atk.models.caption_model import CaptionModel
from atk.models.generation import GenerationConfig
from atk.soundscapes.phrases import CLAUSES


class CaptionSplit:
    """A split of a data folder to caption, each clip by itself and mixed with recordings of `mix.references`.

    Only held-out recordings are mixed in: the test folds of a folder in the ESC-50 layout, or the test split of a
    captioned folder that has one. Without `mix.references`, other clips of the split are mixed in. A recording is not
    mixed into a soundscape that already contains its class.

    Args:
        data, split: as in `atk.eval.retrieval.EvalSplit`.
        sample_rate: sample rate of the model, in Hz.
        clip_seconds: longer clips are truncated to this length.
        mix: condition and level of the mixtures.
        batch_size, workers, on_error: as in training.

    Raises:
        FileNotFoundError, ValueError, AudioError: as for `read_data`, `read_references`, and `MixtureDataset`.
    """

    def __init__(
        self,
        data: Data,
        split: str,
        *,
        sample_rate: int,
        clip_seconds: float,
        mix: MixConfig,
        batch_size: int = 32,
        workers: int = 0,
        on_error: OnError = "skip",
    ):
        data_set = open_data(data).first_with(split)
        self.folder = data_set.folder
        files = data_set.read(split, on_error)
        self.clips, self.skipped = files.clips, files.skipped
        self.on_error: OnError = on_error
        self.batch_size = batch_size
        self.workers = workers
        self.pool = ReferencePool(self.clips, [""] * len(self.clips), [])
        if mix.references is not None:
            self.pool = read_references(mix.references, on_error, folds=mix.test_folds or None, split="test")
        names, tags = read_tags(self.folder / "tags.csv") if self.soundscapes else ([], {})
        # Event classes of each clip.
        self.classes = [frozenset(itertools.compress(names, tags.get(clip.file_name, ()))) for clip in self.clips]
        self.dataset = MixtureDataset(
            self.clips, sample_rate, clip_seconds, mix=mix, pool=self.pool, evaluate=True, avoid=self.classes
        )

    @property
    def soundscapes(self) -> bool:
        """Whether the folder has a tags.csv with the event classes of its clips."""
        return all((self.folder / name).is_file() for name in ("soundscapes.yaml", "tags.csv"))


def evaluate_captions(
    model: CaptionModel,
    split: CaptionSplit,
    beams: int = 4,
    progress: str | None = None,
    *,
    generation: GenerationConfig | None = None,
    repeated: bool = False,
) -> tuple[dict[str, Any], list[Captions]]:
    """Caption a split four ways (thesis Table 4.3) and score the captions that should describe the clip.

    Args:
        model: without a Diff block, `minus_added` and `minus_input` are omitted.
        split: what to caption.
        beams: beam width.
        progress: label of a progress bar; None = no bar.
        generation: further settings of the beam search; None = the defaults.
        repeated: let a mask remove several references one after the other.

    Returns:
        The metrics and the captions. Metrics: `"input"` for all clips, `"mix"` and `"minus_added"` for the mixed clips,
        see `atk.eval.caption_metrics.caption_metrics`; `"named"`, if soundscapes and references have synthesized
        events only, see `class_mentions`; `"missing"`: metrics that could not be computed for some of these, with the
        reason; `"tokenizer"`: name of the tokenizer; `"clips"`: number of clips; `"skipped"`: files and rows that were
        skipped, with the reason; `"unmixed"`: clips that no recording could be mixed into.

    Raises:
        ValueError: no clip can be decoded.
        AudioError: a clip cannot be decoded and `on_error="raise"`.
    """
    loader = one_pass(split.dataset, batch_size=split.batch_size, workers=split.workers, on_error=split.on_error)
    device = device_of(model)
    rows: list[Captions] = []
    clips: list[int] = []  # index of each row's clip in the split
    skipped = list(split.skipped)
    with evaluating(model), torch.no_grad():
        for batch in progress_bar(loader, progress, unit="batch"):
            skipped += batch.skipped
            if batch.files:
                assert isinstance(batch, MixtureBatch)  # collated by MixtureDataset
                options = {"beams": beams, "generation": generation, "repeated": repeated}
                rows += _caption_batch(model, batch.to(device), options)
                clips += batch.clips.tolist()
    if not rows:
        raise ValueError(f"{split.folder}: none of the {len(split.clips)} clips of the split can be decoded")
    scored = ("input", "mix", "minus_added") if _has_difference(model) else ("input", "mix")
    result = _scores(rows, [split.clips[clip].captions for clip in clips], scored)
    if split.soundscapes and CLAUSES.keys() >= {*split.pool.classes}.union(*split.classes):
        result["named"] = class_mentions(rows, [split.classes[clip] for clip in clips], split.pool)
    result["clips"] = len(rows)
    result["skipped"] = [f"{name}: {reason}" for name, reason in skipped]
    result["unmixed"] = [row.file_name for row in rows if not row.added]
    return result, rows


def _scores(rows: Sequence[Captions], references: Sequence[Sequence[str]], modes: Sequence[str]) -> dict[str, Any]:
    """Metrics of each mode of captions against the clips' captions, what is missing, and the tokenizer."""
    result: dict[str, Any] = {}
    missing: dict[str, str] = {}
    tokenizers = []
    for mode in modes:
        pairs = [pair for pair in zip(rows, references, strict=True) if pair[0].added or mode == "input"]
        if not pairs:
            continue
        scores = caption_metrics([getattr(row, mode) for row, _ in pairs], [list(group) for _, group in pairs])
        result[mode] = scores.values
        missing |= scores.missing
        tokenizers.append(scores.tokenizer)
    return result | {"missing": missing, "tokenizer": "; ".join(dict.fromkeys(tokenizers))}


def _has_difference(model: CaptionModel) -> bool:
    return model.config.difference != "none"


def _caption_batch(model: CaptionModel, batch: MixtureBatch, options: dict[str, Any]) -> list[Captions]:
    def generate(audio: Tensor, *references: Tensor) -> list[str]:
        return model.generate(audio, batch.lengths, *references, **options)

    added = [SEPARATOR.join(names) for names in batch.added]
    columns = [batch.files, added, generate(batch.inputs), generate(batch.audio)]
    if _has_difference(model):
        columns.append(generate(batch.audio, batch.references, batch.reference_lengths))
        columns.append(generate(batch.audio, batch.inputs[:, None], batch.lengths[:, None]))
    rows = (Captions(*row) for row in zip(*columns, strict=True))
    return [row if row.added else Captions(row.file_name, "", row.input) for row in rows]


def caption_file(
    model: CaptionModel,
    audio: str | Path,
    references: Sequence[str | Path] = (),
    *,
    clip_seconds: float = 30.0,
    beams: int = 4,
    generation: GenerationConfig | None = None,
    repeated: bool = False,
    common: bool = False,
) -> list[tuple[float, float, str]]:
    """Caption an audio file, or what it contains that the reference files do not.

    Args:
        model: on the device to use.
        audio: file to caption, in windows of `clip_seconds` with one caption each.
        references: reference files. A mask sees all their windows, subtraction only those at the same time.
        clip_seconds: length of a window, in seconds.
        beams: beam width.
        generation: further settings of the beam search; None = the defaults.
        repeated: let a mask remove one file after the other instead of all at once.
        common: describe what the file and all references have in common instead; for a mask only.

    Returns:
        (start, end, caption) of each window; times in seconds.

    Raises:
        ValueError: references are given and the model has no Diff block; or the model or the number of references does
            not go with `common` or `repeated`; or, with `common`, a reference is silent.
        AudioError: a file cannot be read.
    """
    clip, *given = (Clip(str(path), Path(path), (), audio_info(path).seconds) for path in (audio, *references))
    return caption_clip(
        model,
        clip,
        given,
        clip_seconds=clip_seconds,
        beams=beams,
        generation=generation,
        repeated=repeated,
        common=common,
    )
