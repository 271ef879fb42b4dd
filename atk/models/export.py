"""Write a model for use without atk: as a `transformers.ClapModel`, with `torch.export`, or as ONNX."""

import copy
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, export

from atk.extras import optional_imports
from atk.models import clap_transformers
from atk.models.clap import CLAP
from atk.models.htsat import HTSAT
from atk.models.text import TextEncoder
from atk.ops.checks import one_of

Format = Literal["transformers", "torch-export", "onnx"]
FORMATS = get_args(Format)
TOKEN_INPUTS = ("input_ids", "attention_mask", "special_tokens_mask", "offset_mapping")
_AUDIO_OUTPUTS = ("pooled", "frames", "mask")
_TEXT_OUTPUTS = ("pooled", "tokens", "mask", "offsets")
_CAPTIONS = ("a dog barks", "a bell rings twice, then rain falls", "an engine")
_OTHERS = ("thunder", "a cat meows while music plays in the next room")  # of other lengths, to check the result
_TOLERANCE = 1e-2  # of a component of a unit vector; beyond it, something is wrong


class AudioTower(nn.Module):
    """Maps waveforms `[N, S]` and their valid samples `[N]` to global vectors, frames, and their mask; see
    `CLAP.embed_audio`. Vectors have unit length."""

    def __init__(self, model: CLAP):
        super().__init__()
        self.encoder = model.audio_encoder  # not the model, as a program holds all weights of its module
        self.projection = model.audio_projection

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embed clips."""
        pooled, frames, mask = self.encoder(audio, lengths)
        vectors = self.projection(pooled).float(), self.projection(frames).float()
        return F.normalize(vectors[0], dim=-1), F.normalize(vectors[1], dim=-1), mask


class TextTower(nn.Module):
    """Maps what `CLAP.tokenize` returns for N captions to global vectors, tokens, their mask, and character spans.
    Vectors have unit length."""

    def __init__(self, model: CLAP):
        super().__init__()
        self.encoder = model.text_encoder
        self.projection = model.text_projection

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, special_tokens_mask: Tensor, offset_mapping: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embed captions."""
        values = (input_ids, attention_mask, special_tokens_mask, offset_mapping)
        pooled, tokens, mask, offsets = self.encoder(dict(zip(TOKEN_INPUTS, values, strict=True)), None)
        vectors = self.projection(pooled).float(), self.projection(tokens).float()
        return F.normalize(vectors[0], dim=-1), F.normalize(vectors[1], dim=-1), mask, offsets


def export_model(
    model: CLAP,
    folder: str | Path,
    format: Format,  # noqa: A002 (the name of the option)
    logit_scale: float | None = None,
) -> float:
    """Write a model and its tokenizer to a folder, and compare what was written with the model.

    Args:
        model: the model, on the CPU.
        folder: folder to write to; it is created if needed.
        format: "transformers" writes a ClapModel and its processor. "torch-export" writes `audio.pt2` and `text.pt2`,
            which need only torch: see `AudioTower` and `TextTower`. "onnx" writes `audio.onnx` and `text.onnx` with the
            same inputs and outputs, checked with onnxruntime.
        logit_scale: inverse of the temperature that the model was trained with, which a ClapModel also holds; None =
            that of the published checkpoint that the model is, or else the default of ClapModel.

    Returns:
        The largest difference between a component of an embedding and that of the model.

    Raises:
        ValueError: the model has other towers than a ClapModel and cannot be written as one, or what was written
            differs from the model.
        ImportError: a package is missing.
    """
    one_of("format", format, FORMATS)
    folder = Path(folder)
    text_encoder = model.text_encoder
    if not isinstance(text_encoder, TextEncoder):
        raise ValueError("model: word vectors have no tokenizer to export; save the model with save_pretrained instead")
    if format == "transformers":
        error = _write_clap_model(model, folder, logit_scale)
    else:
        model = _without_branches(model)
        folder.mkdir(parents=True, exist_ok=True)
        text_encoder.tokenizer.save_pretrained(folder)
        error = (_write_programs if format == "torch-export" else _write_onnx)(model, folder)
    if not error <= _TOLERANCE:
        raise ValueError(f"{folder}: the exported model differs from the model by up to {error:.1e}")
    return error


@torch.no_grad()
def _write_clap_model(model: CLAP, folder: Path, logit_scale: float | None) -> float:
    assert isinstance(model.text_encoder, TextEncoder)  # checked by `export_model`
    clap_transformers.save_clap_model(
        model.audio_encoder, model.text_encoder, model.audio_projection, model.text_projection, folder, logit_scale
    )
    again = CLAP.from_pretrained(folder)
    audio, lengths = _clips(model, 2, 1.0)
    pairs = (
        (model.embed_audio(audio, lengths).pooled, again.embed_audio(audio, lengths).pooled),
        (model.embed_text(list(_OTHERS)).pooled, again.embed_text(list(_OTHERS)).pooled),
    )
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


@torch.no_grad()
def _write_programs(model: CLAP, folder: Path) -> float:
    errors = []
    for name, tower, example, other, shapes, _ in _towers(model):
        with _quiet():
            torch.export.save(export(tower, example, dynamic_shapes=shapes), folder / f"{name}.pt2")
            outputs = torch.export.load(folder / f"{name}.pt2").module()(*other)
        errors.append(_largest_error(outputs, tower(*other)))
    return max(errors)


@torch.no_grad()
def _write_onnx(model: CLAP, folder: Path) -> float:
    with optional_imports:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401

    errors = []
    for name, tower, example, other, shapes, names in _towers(model):
        path = str(folder / f"{name}.onnx")
        inputs = ("audio", "lengths") if name == "audio" else TOKEN_INPUTS
        with _quiet():
            torch.onnx.export(
                tower,
                example,
                path,
                input_names=inputs,
                output_names=names,
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        used = {value.name for value in session.get_inputs()}
        feed = {key: value.numpy() for key, value in zip(inputs, other, strict=True) if key in used}
        errors.append(_largest_error(map(torch.from_numpy, session.run(None, feed)), tower(*other)))
    return max(errors)


def _towers(model: CLAP):
    """(name, tower, inputs to trace, other inputs to compare, dynamic shapes, names of the outputs) of both towers."""
    any_shape = {0: Dim.AUTO, 1: Dim.AUTO}
    clips = _clips(model, 3, 2.0), _clips(model, 2, 1.3)
    texts = [tuple(model.tokenize(list(texts))[key] for key in TOKEN_INPUTS) for texts in (_CAPTIONS, _OTHERS)]
    yield "audio", AudioTower(model), *clips, (any_shape, {0: Dim.AUTO}), _AUDIO_OUTPUTS
    yield "text", TextTower(model), *texts, (any_shape,) * len(TOKEN_INPUTS), _TEXT_OUTPUTS


def _clips(model: CLAP, count: int, seconds: float) -> tuple[Tensor, Tensor]:
    """Noise of different lengths."""
    samples = int(seconds * model.sample_rate)
    audio = 0.1 * torch.randn(count, samples, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([samples // (index + 1) for index in range(count)])
    return audio * (torch.arange(samples) < lengths[:, None]), lengths


def _without_branches(model: CLAP) -> CLAP:
    """A copy of the model that does the same for clips within its input, without a choice that depends on the clip."""
    model = copy.deepcopy(model).cpu().float().eval()
    if isinstance(model.audio_encoder, HTSAT):
        model.audio_encoder.use_long_clips("start")
        model.audio_encoder.drop_fusion()
    return model


def _largest_error(outputs, expected) -> float:
    """Largest difference between valid values of the outputs of a tower."""
    pooled, parts, mask, *_ = outputs
    expected_pooled, expected_parts, expected_mask, *_ = expected
    if not torch.equal(mask, expected_mask):
        return float("inf")
    differences = (pooled - expected_pooled), (parts - expected_parts)[mask]
    return max(float(difference.abs().max()) for difference in differences)


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without the exporters' messages about packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
