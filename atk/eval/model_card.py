"""The model card of an exported model: what it is, how it was trained, and what it scores."""

import json
from pathlib import Path
from typing import Any

from atk.models.clap import CLAP
from atk.models.export import Format
from atk.models.saved import run_settings

_USE = {
    "transformers": """from transformers import ClapModel, ClapProcessor

model, processor = ClapModel.from_pretrained("."), ClapProcessor.from_pretrained(".")""",
    "torch-export": """import torch

audio = torch.export.load("audio.pt2").module()
pooled, frames, mask = audio(waveforms, lengths)  # [N, S] float32, [N] int64""",
    "onnx": """import onnxruntime

audio = onnxruntime.InferenceSession("audio.onnx")
pooled, frames, mask = audio.run(None, {"audio": waveforms, "lengths": lengths})  # [N, S] float32, [N] int64""",
}
_SETTINGS = ("data", "unlabeled", "steps", "epochs", "batch_size", "clip_seconds", "seed", "init")


def model_card(model: CLAP, source: str | Path, format: Format, command: str) -> str:  # noqa: A002
    """The model card in Markdown.

    Args:
        model: the exported model.
        source: where it was loaded from; of a run, the card tells the settings and the metrics.
        format: format of the export.
        command: the command that exported it.

    Raises:
        ValueError: the run's `config.yaml` or `summary.json` is damaged.
    """
    settings, metrics = run_settings(source), _metrics(Path(source))
    rows = {
        "width of the shared space": model.dim,
        "sample rate": f"{model.sample_rate} Hz",
        "duration of a frame": f"{model.frame_seconds:.4g} s",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
    }
    rows |= {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    scores = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    results = f"\n## Results\n\n| metric | value |\n|---|---:|\n{scores}\n" if metrics else ""
    return (
        "---\ntags: [audio, text, clap, audio-text-retrieval]\npipeline_tag: feature-extraction\n---\n\n"
        f"# {Path(source).name}\n\n"
        "A contrastive audio-text model, exported by audio-text-kernels.\n"
        f"\n| | |\n|---|---|\n{table}\n{results}"
        f"\n## Use\n\n```python\n{_USE[format]}\n```\n\nExported with `{command}`.\n"
    )


def _metrics(source: Path) -> dict[str, float]:
    """The numbers in a run's `summary.json` by their path, such as `text_to_audio R@1`."""
    path = source / "summary.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["metrics"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error})") from None
    return dict(_numbers(values, ""))


def _numbers(values: Any, prefix: str):
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _numbers(value, f"{prefix} {name}".strip())
    elif isinstance(values, (int, float)) and not isinstance(values, bool):
        yield prefix, float(values)


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", r"\|")
