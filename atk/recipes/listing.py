"""Table 4.3: captions of clips, mixtures, and differences, by the model and by its baseline."""

import csv
from collections.abc import Sequence
from pathlib import Path

from atk.data import open_data
from atk.data.mixtures import MixConfig
from atk.device import default_workers, pick_device
from atk.eval.caption_listing import Captions, format_captions, write_captions
from atk.eval.captioning import CaptionSplit, evaluate_captions
from atk.models.captioner import Captioner
from atk.models.generation import GenerationConfig
from atk.models.saved import load_yaml
from atk.recipes.jobs import Job, Machine

EXAMPLES = 4  # clips in the page; the CSV file has all


def list_captions(path: Path, model: Job, baseline: Job, machine: Machine) -> str:
    """Write the captions of the held-out clips as CSV, unless they are there, and return the first of them as text.

    Args:
        path: the CSV file.
        model: run of the model with a Diff block.
        baseline: run of the captioner without one; its features of the reference are subtracted.
        machine: what to run on.
    """
    captions = read_captions(model.folder / "captions_test.csv")
    if not path.is_file():
        write_captions(path, captions, _baseline_captions(baseline, machine))
    others = read_captions(path, "baseline_")
    mixed = [row for row in captions if row.added]
    return format_captions((mixed or captions)[:EXAMPLES], others)


def read_captions(path: Path, prefix: str = "") -> list[Captions]:
    """The captions that `write_captions` wrote; with a prefix, those of the baseline."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    modes = ("input", "mix", "minus_added", "minus_input")
    return [Captions(row["file_name"], row["added"], *(row[prefix + mode] for mode in modes)) for row in rows]


def _baseline_captions(job: Job, machine: Machine) -> Sequence[Captions]:
    device = pick_device(machine.device)
    settings = load_yaml(job.folder / "config.yaml")
    plain = Captioner.from_pretrained(job.folder)
    model = plain.with_difference("subtraction", plain.config.heads).to(device).eval()
    split = CaptionSplit(
        open_data(job.sources[job.row.target]),
        "test",
        sample_rate=model.sample_rate,
        clip_seconds=settings["clip_seconds"],
        mix=MixConfig(**settings["mix"]),
        workers=default_workers(device) if machine.workers is None else machine.workers,
    )
    generation = GenerationConfig(**settings["generation"])
    return evaluate_captions(model, split, settings["beams"], "baseline", generation=generation)[1]
