"""Captions by a trained model: of files, and of a held-out split with the metrics and the listing of Table 4.3."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from atk.data import (
    Clip,
    MixConfig,
    MixtureBatch,
    MixtureDataset,
    ReferencePool,
    audio_info,
    eval_loader,
    one_pass,
    read_references,
    read_split,
)
from atk.data.side_files import read_tags
from atk.eval.caption_metrics import caption_metrics
from atk.eval.embed import evaluating
from atk.models.captioner import Captioner

_WINDOWS = 8  # of a file that are encoded at a time


@dataclass(frozen=True)
class Captions:
    """What a model says of one clip (Table 4.3).

    Args:
        file_name: of the clip.
        added: the recordings mixed into it, joined by "; "; "" where nothing could be, and then all below but `input`.
        input: caption of the clip.
        mix: caption of the mixture, without a reference.
        minus_added: caption of `Diff(mix, added)`, which should be that of the clip; "" without a Diff block.
        minus_input: caption of `Diff(mix, clip)`, which should describe the added sound; "" without a Diff block.
    """

    file_name: str
    added: str
    input: str
    mix: str = ""
    minus_added: str = ""
    minus_input: str = ""


class CaptionSplit:
    """A split of a data folder to caption, each clip also mixed with recordings of `mix.references`.

    In ESC-50's layout only its test folds are used, of a captioned folder test.csv where it exists; without
    `mix.references`, other clips of the split are mixed in. No class of recordings is mixed into a soundscape that
    holds it.

    Args:
        folder: data folder.
        split: "train", "val" or "test".
        sample_rate: the model's, in Hz.
        clip_seconds: longer clips are cut to their first so many seconds.
        mix: condition and level of the mixtures.
        batch_size, workers, on_error: as in training.

    Raises:
        FileNotFoundError, ValueError, AudioError: as `read_split`, `read_references` and `MixtureDataset`.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        *,
        sample_rate: int,
        clip_seconds: float,
        mix: MixConfig,
        batch_size: int = 32,
        workers: int = 0,
        on_error: str = "skip",
    ):
        self.folder = Path(folder)
        found = read_split(folder, split, on_error)
        self.clips, self.skipped, self.on_error = found.clips, found.skipped, on_error
        self.batch_size, self.workers = batch_size, workers
        self.pool = ReferencePool(self.clips, [""] * len(self.clips), [])
        if mix.references is not None:
            self.pool = read_references(mix.references, on_error, folds=mix.test_folds or None, split="test")
        names, tags = read_tags(self.folder / "tags.csv") if self.soundscapes else ([], {})
        self.classes = [
            frozenset(itertools.compress(names, tags.get(clip.file_name, ()))) for clip in self.clips
        ]  # of each clip
        window = (sample_rate, clip_seconds)
        self.dataset = MixtureDataset(self.clips, *window, mix=mix, pool=self.pool, evaluate=True, avoid=self.classes)

    @property
    def soundscapes(self) -> bool:
        """Whether the folder's tags.csv names the event classes of its clips."""
        return all((self.folder / name).is_file() for name in ("soundscapes.yaml", "tags.csv"))


def evaluate_captions(
    model: Captioner, split: CaptionSplit, beams: int = 4, progress: str | None = None
) -> tuple[dict, list[Captions]]:
    """Caption a split four ways (Table 4.3), and score what should be the caption of the clip.

    Args:
        model: without a Diff block, the two differences are left out.
        split: what to caption.
        beams: width of the beam search.
        progress: label of a progress bar, None for none.

    Returns:
        The metrics and the captions. Metrics: `"input"`, of all clips, `"mix"` and `"minus_added"`, of those mixed:
        see `atk.eval.caption_metrics.caption_metrics`; `"named"`, for soundscapes with references of known class: see
        `named`;
        `"missing"`: metrics that could not be computed for all of these, and why; `"tokenizer"`: what cut the captions
        into words; `"clips"`, `"skipped"`; `"unmixed"`: clips that nothing could be mixed into.

    Raises:
        ValueError: no clip can be decoded; with `on_error="raise"`, a file cannot (AudioError).
    """
    loader = one_pass(split.dataset, batch_size=split.batch_size, workers=split.workers, on_error=split.on_error)
    device = next(model.parameters()).device
    rows, numbers, skipped = [], [], list(split.skipped)
    with evaluating(model), torch.no_grad():
        for batch in tqdm(loader, progress, unit="batch", leave=False, disable=None if progress else True):
            skipped += batch.skipped
            if batch.files:
                rows += _four_ways(model, batch.to(device), beams)
                numbers += batch.clips.tolist()
    if not rows:
        raise ValueError(f"{split.folder}: none of the {len(split.clips)} clips of the split can be decoded")
    ways = ("input", "mix", "minus_added") if _has_difference(model) else ("input", "mix")
    result = _scores(rows, [split.clips[number].captions for number in numbers], ways)
    if split.soundscapes and all(split.pool.classes):
        result["named"] = named(rows, [split.classes[number] for number in numbers], split.pool)
    result |= {"clips": len(rows), "skipped": [f"{name}: {reason}" for name, reason in skipped]}
    return result | {"unmixed": [row.file_name for row in rows if not row.added]}, rows


def _scores(rows: Sequence[Captions], references: Sequence[Sequence[str]], ways: Sequence[str]) -> dict:
    """Metrics of each way of captioning against the clips' captions, what is missing, and the tokenizer."""
    result, missing, tokenizers = {}, {}, []
    for way in ways:
        pairs = [(row, own) for row, own in zip(rows, references, strict=True) if row.added or way == "input"]
        if not pairs:
            continue
        scores = caption_metrics([getattr(row, way) for row, _ in pairs], [list(own) for _, own in pairs])
        result[way] = scores.values
        missing |= scores.missing
        tokenizers.append(scores.tokenizer)
    return result | {"missing": missing, "tokenizer": "; ".join(dict.fromkeys(tokenizers))}


def _has_difference(model: Captioner) -> bool:
    return model.config.difference != "none"


def _four_ways(model: Captioner, batch: MixtureBatch, beams: int) -> list[Captions]:
    def write(audio: Tensor, *references: Tensor) -> list[str]:
        return model.generate(audio, batch.lengths, *references, beams=beams)

    columns = [batch.files, ["; ".join(names) for names in batch.added], write(batch.inputs), write(batch.audio)]
    if _has_difference(model):
        columns.append(write(batch.audio, batch.references, batch.reference_lengths))
        columns.append(write(batch.audio, batch.inputs[:, None], batch.lengths[:, None]))
    rows = (Captions(*row) for row in zip(*columns, strict=True))
    return [row if row.added else Captions(row.file_name, "", row.input) for row in rows]


def named(rows: Sequence[Captions], classes: Sequence[frozenset[str]], pool: ReferencePool) -> dict[str, dict]:
    """How often captions name the events of the clip, and those of the added sound, in percent.

    Args:
        rows: captions of soundscapes.
        classes: event classes of each clip.
        pool: the recordings that were added, with their classes.

    Returns:
        For each way of captioning: `"target"`, the share of the clips' events that are named; `"added"`, the share of
        the added recordings whose class is named; `"target_alone"`, the share of the captions that name an event of
        the clip and none of the added sounds.
    """
    from atk.soundscapes.phrases import classes_named

    class_of = {clip.file_name: name for clip, name in zip(pool.clips, pool.classes, strict=True)}
    added = [[class_of[name] for name in row.added.split("; ")] if row.added else [] for row in rows]
    result = {}
    for way in ("input", "mix", "minus_added", "minus_input"):
        if not any(getattr(row, way) for row in rows):
            continue
        clips = [
            (classes_named(getattr(row, way)), own, others)
            for row, own, others in zip(rows, classes, added, strict=True)
            if row.added or way == "input"
        ]
        result[way] = {
            "target": _share([name in said for said, own, _ in clips for name in own]),
            "added": _share([name in said for said, _, others in clips for name in others]),
            "target_alone": _share([bool(said & own) and not said & set(others) for said, own, others in clips]),
        }
    return result


def _share(hits: list[bool]) -> float:
    return round(100 * sum(hits) / max(1, len(hits)), 2)


def write_captions(path: Path, rows: Sequence[Captions]) -> None:
    """The listing of Table 4.3 as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(Captions))
        table.writerows(astuple(row) for row in rows)


def format_captions(rows: Sequence[Captions]) -> str:
    """The listing of Table 4.3 as text."""
    lines = []
    for row in rows:
        lines.append(f"{row.file_name} + {row.added}")
        lines += [f"  {name:<12} {text}" for name, text in list(asdict(row).items())[2:] if text]
    return "\n".join(lines)


def caption_file(
    model: Captioner,
    audio: str | Path,
    references: Sequence[str | Path] = (),
    *,
    clip_seconds: float = 30.0,
    beams: int = 4,
) -> list[tuple[float, float, str]]:
    """Caption a file, or what it has that the reference files do not.

    Args:
        model: on the device to use.
        audio: file to describe; it is cut into windows of `clip_seconds`, one caption each.
        references: files to subtract. A mask sees all windows of them, subtraction only those at the same time.
        clip_seconds: length of a window.
        beams: width of the beam search.

    Returns:
        (start, end, caption) of each window, in seconds.

    Raises:
        ValueError: references for a model without a Diff block.
        AudioError: a file cannot be used.
    """
    if references and not _has_difference(model):
        raise ValueError("reference: this model was trained without a Diff block and can only caption a clip alone")
    with evaluating(model), torch.no_grad():
        files = [[z for z, _ in _encoded(model, reference, clip_seconds)] for reference in references]
        everything = [z for file in files for z in file]
        captions = []
        for number, (z, seconds) in enumerate(_encoded(model, audio, clip_seconds)):
            tracks = everything
            if model.config.difference == "subtraction":
                tracks = [file[number] for file in files if number < len(file)]
            text = model.decoder.generate(*_difference(model, z, tracks), beams, None)[0]
            captions.append((number * clip_seconds, number * clip_seconds + seconds, text))
    return captions


def _difference(model: Captioner, z: Tensor, tracks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`Diff(z, tracks)` `[1, L, D]` of features `[L, D]` and `[L_ref, D]` each, and its mask; `z` without any."""
    mask = z.new_ones(1, len(z), dtype=torch.bool)
    if not tracks:
        return z[None], mask
    valid = pad_sequence([track.new_ones(len(track), dtype=torch.bool) for track in tracks], batch_first=True)
    return model.difference(z[None], pad_sequence(tracks, batch_first=True)[None], valid[None]), mask


def _encoded(model: Captioner, path: str | Path, seconds: float) -> Iterator[tuple[Tensor, float]]:
    """Features `[L, D]` of each window of a file, and its length in seconds."""
    clip, device = Clip(str(path), Path(path), (), audio_info(path).seconds), next(model.parameters()).device
    options = {"sample_rate": model.sample_rate, "clip_seconds": seconds, "batch_size": _WINDOWS, "on_error": "raise"}
    for batch in eval_loader([clip], **options):
        features, mask = model.encode(batch.audio.to(device), batch.lengths.to(device))
        for z, valid, length in zip(features, mask, batch.lengths.tolist(), strict=True):
            yield z[valid], length / model.sample_rate
