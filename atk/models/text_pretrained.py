"""Load a text encoder and its tokenizer from a checkpoint of transformers, and try them before they are used."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from atk.models.saved import damaged_file
from atk.models.tokenizer import import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CAPTIONS = ["a dog barks", "rain"]  # of different lengths, so that one is padded


def load_pretrained(name: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The text encoder and the tokenizer of a checkpoint.

    Args:
        name: local folder or hub name of an encoder, a decoder, an encoder-decoder (its encoder is used), or a model of
            text and something else, such as CLIP (its text tower is used).

    Raises:
        ValueError: the checkpoint cannot be loaded, or is not a text encoder with a tokenizer that gives offsets.
    """
    transformers = import_transformers()
    try:
        model = text_tower(transformers.AutoModel.from_pretrained(name))
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        prepare_tokenizer(tokenizer)
        _try(model, tokenizer)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of many types, depending on the checkpoint
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        if Path(name).is_dir() and (damaged := damaged_file(Path(name), (".safetensors", ".json"))) is not None:
            reason = f"{damaged.name} is damaged or cut short"
        raise ValueError(f"text.pretrained: cannot use {name!r}: {reason}") from error
    return model, tokenizer


def text_tower(model: nn.Module) -> "PreTrainedModel":
    """The part of a model that encodes text: a text tower, the encoder of an encoder-decoder, or the model itself."""
    parts = {name: getattr(model, name, None) for name in ("text_model", "encoder", "decoder")}
    tower = model
    if isinstance(parts["text_model"], nn.Module):
        tower = parts["text_model"]
    elif isinstance(parts["encoder"], nn.Module) and isinstance(parts["decoder"], nn.Module):
        tower = parts["encoder"]
    return cast("PreTrainedModel", tower)


def prepare_tokenizer(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make the tokenizer pad on the right, as the encoder expects, and with the end token if it has no padding token.

    Raises:
        ValueError: the tokenizer has neither a padding token nor an end token.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError("its tokenizer has neither a padding token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token


@torch.no_grad()
def _try(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Encode two captions; raises ValueError if something is missing, and whatever the model raises."""
    tokens = tokenizer(_CAPTIONS, padding=True, return_tensors="pt", return_special_tokens_mask=True)
    if not tokenizer.is_fast:
        raise ValueError("its tokenizer gives no character offsets; a checkpoint with a tokenizer.json is needed")
    if not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise ValueError(f"a {model.config.model_type} model has no word embeddings")
    training = model.training
    features = model.eval()(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    model.train(training)
    if features.shape != (*tokens["input_ids"].shape, model.config.hidden_size):
        raise ValueError(f"its features for {len(_CAPTIONS)} captions have shape {list(features.shape)}")
