"""The encoders of a `transformers.ClapModel` (HTS-AT and RoBERTa, 512 wide), as `atk.models.clap.CLAP` takes them."""

import contextlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from atk.models.htsat import HTSAT
from atk.models.text import TextEncoder, TextEncoderConfig
from atk.models.tokenizer import import_transformers, train_bpe

# RoBERTa's own spellings and, in this order, its own numbers.
_SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_COMPUTED = ("position_ids", "token_type_ids", "relative_position_index")  # buffers that old checkpoints lack


@dataclass(frozen=True)
class ClapConfig:
    """A `transformers.ClapModel` in place of the project's own encoders, where `pretrained` or `random_init` is set.

    Args:
        pretrained: local folder or hub name of a ClapModel, such as laion/clap-htsat-unfused.
        random_init: random weights of its configuration, or, with no `pretrained`, of the published one (ClapConfig()).
    """

    pretrained: str | None = None
    random_init: bool = False

    @property
    def chosen(self) -> bool:
        """Whether a ClapModel is wanted at all."""
        return self.pretrained is not None or self.random_init


def create_encoders(
    config: ClapConfig, text: TextEncoderConfig, captions: Iterable[str]
) -> tuple[HTSAT, TextEncoder, nn.Module, nn.Module]:
    """Audio encoder, text encoder and their projections, of a ClapModel.

    The temperature of a checkpoint is left out: every trainer has its own.

    Args:
        config: which ClapModel.
        text: `max_tokens` and `token_layer` hold; `vocabulary` does where a tokenizer is trained.
        captions: train a tokenizer where the folder has none.

    Raises:
        ValueError: there is no such ClapModel, or its weights or its tokenizer do not fit it.
    """
    transformers = import_transformers()
    clap = _model(transformers, config).float()
    extractor = _extractor(transformers, config.pretrained, clap.config.audio_config.enable_fusion)
    tokenizer = _tokenizer(transformers, config, clap.config.text_config, text.vocabulary, captions)
    encoder = TextEncoder(replace(text, pooling="pooler"), clap.text_model, tokenizer)
    return HTSAT(clap.audio_model, extractor), encoder, clap.audio_projection, clap.text_projection


def save_encoders(audio: HTSAT, text: TextEncoder, folder: Path) -> None:
    """Write everything but the weights to `folder`, as a ClapModel folder has it."""
    towers = {"text_config": text.model.config, "audio_config": audio.model.config}
    shared = {name: getattr(text.model.config, name) for name in ("projection_dim", "projection_hidden_act")}
    config = import_transformers().ClapConfig(**{name: tower.to_dict() for name, tower in towers.items()}, **shared)
    config.save_pretrained(folder)
    audio.features.extractor.save_pretrained(folder)
    text.tokenizer.save_pretrained(folder)


def load_encoders(folder: Path, text: TextEncoderConfig) -> tuple[HTSAT, TextEncoder, nn.Module, nn.Module]:
    """What `save_encoders` wrote in `folder`; the weights come with the whole model's."""
    return create_encoders(ClapConfig(str(folder), random_init=True), text, [])


def _extractor(transformers, name: str | None, fusion: bool):
    """The `ClapFeatureExtractor` of a checkpoint, the default one where it has none."""
    if name is not None:
        with contextlib.suppress(OSError):
            return transformers.ClapFeatureExtractor.from_pretrained(name)
    return transformers.ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc")


def _model(transformers, config: ClapConfig) -> nn.Module:
    name = config.pretrained
    if name is None:
        return transformers.ClapModel(transformers.ClapConfig())
    try:
        found = transformers.AutoConfig.from_pretrained(name)
        if found.model_type != "clap":
            raise ValueError(f"it is a {found.model_type}, a clap is wanted")
        if config.random_init:
            return transformers.ClapModel(found)
        model, report = transformers.ClapModel.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"clap.pretrained: cannot load {name!r}: {str(error).splitlines()[0]}") from error
    missing = sorted(key for key in report["missing_keys"] if not key.endswith(_COMPUTED))
    if missing:
        raise ValueError(f"clap.pretrained: {name!r} lacks {len(missing)} weights, {missing[0]} the first")
    return model


def _tokenizer(transformers, config: ClapConfig, text, vocabulary: int, captions: Iterable[str]):
    """The tokenizer of `config.pretrained`, or one trained on captions whose special tokens RoBERTa's model knows."""
    name = config.pretrained
    if name is not None and not _lacks_tokenizer(name):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"clap.pretrained: cannot load the tokenizer of {name!r}: {reason}") from error
    else:
        if not config.random_init:
            sys.stderr.write(
                f"clap.pretrained: {name!r} has no tokenizer: one is trained on the captions, and what the word "
                "embeddings had learnt is lost\n"
            )
        same = {"cls_token": _SPECIAL_TOKENS["bos_token"], "sep_token": _SPECIAL_TOKENS["eos_token"]}
        tokenizer = train_bpe(captions, min(vocabulary, text.vocab_size), _SPECIAL_TOKENS, "<s> $A </s>", **same)
    if len(tokenizer) > text.vocab_size:
        raise ValueError(f"clap: the tokenizer has {len(tokenizer)} entries, the text model only {text.vocab_size}")
    if tokenizer.pad_token_id != text.pad_token_id:
        raise ValueError(
            f"clap: the tokenizer pads with {tokenizer.pad_token_id}, the text model with {text.pad_token_id}"
        )
    return tokenizer


def _lacks_tokenizer(name: str) -> bool:
    folder = Path(name)
    return folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES)
