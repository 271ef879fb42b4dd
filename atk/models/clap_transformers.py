"""The encoders of a `transformers.ClapModel` (HTS-AT and RoBERTa, width 512) for `atk.models.clap.CLAP`."""

import contextlib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import nn

from atk.models.htsat import HTSAT
from atk.models.laion import read_model
from atk.models.text import TextEncoder, TextEncoderConfig
from atk.models.tokenizer import import_transformers, train_bpe

if TYPE_CHECKING:
    from transformers import ClapFeatureExtractor, ClapModel, ClapTextConfig, PreTrainedTokenizerBase

# Spelled and ordered as in RoBERTa, so that they get RoBERTa's token ids.
_SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# Buffers that old checkpoints lack; the model computes them.
_COMPUTED = ("position_ids", "token_type_ids", "relative_position_index")


@dataclass(frozen=True)
class ClapConfig:
    """A `transformers.ClapModel` that replaces both encoders if `pretrained` or `random_init` is set.

    Args:
        pretrained: local folder or hub name of a ClapModel, such as laion/clap-htsat-unfused. Of the encoder
            settings, only `text.max_tokens`, `text.vocabulary`, and `text.token_layer` then apply. Also a file of
            LAION-CLAP, such as 630k-audioset-best.pt.
        random_init: use random weights, in the architecture of `pretrained` or else that of the published models.
        tokenizer: local folder or hub name of RoBERTa's tokenizer, which is not part of a file of LAION-CLAP.
    """

    pretrained: str | None = None
    random_init: bool = False
    tokenizer: str = "roberta-base"

    @property
    def enabled(self) -> bool:
        """Whether the model is a ClapModel."""
        return self.pretrained is not None or self.random_init

    @property
    def is_file(self) -> bool:
        """Whether `pretrained` is a file of LAION-CLAP."""
        return self.pretrained is not None and Path(self.pretrained).is_file()


def create_encoders(
    config: ClapConfig, text: TextEncoderConfig, captions: Iterable[str]
) -> tuple[HTSAT, TextEncoder, nn.Module, nn.Module]:
    """Create the audio encoder, the text encoder, and their projections from a ClapModel.

    Args:
        config: which ClapModel to create.
        text: only `max_tokens` and `token_layer` apply, and `vocabulary` if a tokenizer is trained.
        captions: training data of the tokenizer, if the checkpoint has none.

    Raises:
        ValueError: the ClapModel cannot be loaded, or its weights or its tokenizer do not match it.
    """
    transformers = import_transformers()
    clap, extractor = _model(transformers, config)
    tokenizer = _tokenizer(transformers, config, clap.text_model.config, text.vocabulary, captions)
    encoder = TextEncoder(replace(text, pooling="pooler"), clap.text_model, tokenizer)
    scales = (None, None)
    if not config.random_init:
        scales = float(clap.logit_scale_a.detach().exp()), float(clap.logit_scale_t.detach().exp())
    audio = HTSAT(clap.audio_model, extractor, None, *scales)
    return audio, encoder, clap.audio_projection, clap.text_projection


def save_encoders(audio: HTSAT, text: TextEncoder, folder: Path) -> None:
    """Save everything but the weights to `folder`, in the format of a ClapModel."""
    _config(audio, text).save_pretrained(folder)
    audio.features.extractor.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)


def save_clap_model(
    audio: nn.Module,
    text: TextEncoder,
    audio_projection: nn.Module,
    text_projection: nn.Module,
    folder: Path,
    logit_scale: float | None = None,
) -> None:
    """Save a `transformers.ClapModel` with these parts, and its processor.

    Args:
        audio, text, audio_projection, text_projection: the parts.
        folder: folder to write to.
        logit_scale: inverse of the temperature of the loss; None keeps the scales of the published checkpoint that the
            audio encoder is from, or else takes those of a new ClapModel.

    Raises:
        ValueError: the parts are not those of a ClapModel.
    """
    transformers = import_transformers()
    if not isinstance(audio, HTSAT) or not isinstance(text.model, transformers.ClapTextModel):
        text_name = text.model.config.model_type
        raise ValueError(
            f"format: only the towers of a ClapModel can be saved as one, got {type(audio).__name__} and {text_name}; "
            "torch-export and onnx take others"
        )
    clap = transformers.ClapModel(_config(audio, text))
    parts = {
        "audio_model": audio.model,
        "text_model": text.model,
        "audio_projection": audio_projection,
        "text_projection": text_projection,
    }
    for name, part in parts.items():
        getattr(clap, name).load_state_dict(part.state_dict())
    scales = (audio.logit_scale, audio.text_logit_scale) if logit_scale is None else (logit_scale, logit_scale)
    for parameter, scale in zip((clap.logit_scale_a, clap.logit_scale_t), scales, strict=True):
        if scale is not None:
            parameter.data.fill_(math.log(scale))
    clap.save_pretrained(folder)
    transformers.ClapProcessor(audio.features.extractor, text.tokenizer).save_pretrained(folder)


def _config(audio: HTSAT, text: TextEncoder) -> Any:
    """The configuration of the ClapModel that has these encoders."""
    text_config = text.model.config
    return import_transformers().ClapConfig(
        text_config=text_config.to_dict(),
        audio_config=audio.model.config.to_dict(),
        projection_dim=text_config.projection_dim,
        projection_hidden_act=text_config.projection_hidden_act,
    )


def load_encoders(folder: Path, text: TextEncoderConfig) -> tuple[HTSAT, TextEncoder, nn.Module, nn.Module]:
    """Load what `save_encoders` saved. The weights are loaded with those of the whole model."""
    return create_encoders(ClapConfig(str(folder), random_init=True), text, [])


def _model(transformers: ModuleType, config: ClapConfig) -> "tuple[ClapModel, ClapFeatureExtractor]":
    """The model and its feature extractor."""
    if config.is_file:
        model, extractor = read_model(transformers, str(config.pretrained))
        return transformers.ClapModel(model.config) if config.random_init else model, extractor
    model = _saved_model(transformers, config).float()
    return model, _extractor(transformers, config.pretrained, model.audio_model.config.enable_fusion)


def _extractor(transformers: ModuleType, name: str | None, fusion: bool) -> "ClapFeatureExtractor":
    """The feature extractor of a checkpoint, or the default one if the checkpoint has none."""
    if name is not None:
        with contextlib.suppress(OSError):
            return transformers.ClapFeatureExtractor.from_pretrained(name)
    return transformers.ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc")


def _saved_model(transformers: ModuleType, config: ClapConfig) -> "ClapModel":
    name = config.pretrained
    if name is None:
        return transformers.ClapModel(transformers.ClapConfig())
    try:
        saved = transformers.AutoConfig.from_pretrained(name)
        if saved.model_type != "clap":
            raise ValueError(f"expected model type 'clap', got {saved.model_type!r}")
        if config.random_init:
            return transformers.ClapModel(saved)
        model, report = transformers.ClapModel.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"clap.pretrained: cannot load {name!r}: {str(error).splitlines()[0]}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(_COMPUTED))
    if missing:
        raise ValueError(f"clap.pretrained: {name!r} lacks weights ({len(missing)} in all; the first is {missing[0]})")
    return model


def _tokenizer(
    transformers: ModuleType, config: ClapConfig, text: "ClapTextConfig", vocabulary: int, captions: Iterable[str]
) -> "PreTrainedTokenizerBase":
    """The tokenizer of the checkpoint, or one trained on the captions, with RoBERTa's special tokens."""
    name = config.tokenizer if config.is_file else config.pretrained
    if name is not None and not _lacks_tokenizer(name):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            setting = (
                "clap.tokenizer: cannot load" if config.is_file else "clap.pretrained: cannot load the tokenizer of"
            )
            raise ValueError(f"{setting} {name!r}: {reason}") from error
    else:
        if not config.random_init:
            sys.stderr.write(
                f"clap.pretrained: {name!r} has no tokenizer; training one on the captions, so the word "
                "embeddings have to be learned again\n"
            )
        tokenizer = train_bpe(
            captions,
            min(vocabulary, text.vocab_size),
            _SPECIAL_TOKENS,
            "<s> $A </s>",
            cls_token=_SPECIAL_TOKENS["bos_token"],
            sep_token=_SPECIAL_TOKENS["eos_token"],
        )
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"clap: the tokenizer has {len(tokenizer)} entries, the text model only {text.vocab_size}")
    if tokenizer.pad_token_id != text.pad_token_id:
        raise ValueError(
            f"clap: the tokenizer pads with token {tokenizer.pad_token_id}, the text model with {text.pad_token_id}"
        )
    return tokenizer


def _lacks_tokenizer(name: str) -> bool:
    folder = Path(name)
    return folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES)
