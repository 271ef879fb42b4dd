"""The text encoder: a BERT- or RoBERTa-like checkpoint from transformers, or a small one trained from scratch."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from atk.models.layers import Layer, check_layer, layer_number
from atk.models.text_pretrained import load_pretrained, prepare_tokenizer, text_tower
from atk.models.tokenizer import import_transformers, train_bpe
from atk.ops import checks

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Pooling = Literal["cls", "mean", "last", "pooler"]
POOLINGS = get_args(Pooling)
_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class TextEncoderConfig:
    """A pretrained text encoder, or the size of a small BERT with a tokenizer trained on the captions.

    Args:
        pretrained: local folder or hub name of a checkpoint: BERT, RoBERTa, a decoder, the encoder of T5, or the text
            tower of CLIP, for example; None = train from scratch with the settings below.
        vectors: text file of word vectors in the format of GloVe, a word and its numbers a line; a caption is then the
            mean of the vectors of its words, and of the settings below, only `max_tokens` and `vocabulary` apply. Read
            when the model is created.
        train_vectors: whether the word vectors are trained.
        pooling: what the global vector is: the first token ("cls"), the mean over valid tokens ("mean"), the end token
            ("last"), or the output of the encoder's own pooling layer ("pooler").
        max_tokens: longer captions are truncated to this many tokens.
        vocabulary: maximum size of a tokenizer trained on the captions; with `vectors`, number of words taken from the
            start of the file besides those of the captions.
        width: width of the Transformer.
        layers: number of Transformer layers.
        heads: number of attention heads.
        dropout: dropout rate.
        token_layer: layer that the token features are taken from; 0 = the word embeddings, None = the last layer.
            Tokens of lower layers see less of the rest of the caption, so alignment maps are sharper. "auto": 0 if
            `pretrained` is None and the loss aligns frames and tokens; otherwise the last layer.
    """

    pretrained: str | None = None
    pooling: Pooling = "cls"
    max_tokens: int = 77
    vocabulary: int = 4000
    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    token_layer: Layer = "auto"
    vectors: str | None = None
    train_vectors: bool = False

    def __post_init__(self) -> None:
        checks.one_of("pooling", self.pooling, POOLINGS)
        check_layer("token_layer", self.token_layer)
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3, got {self.max_tokens}")
        if self.vectors is not None and self.pretrained is not None:
            raise ValueError(
                f"only one of pretrained and vectors can be set, got {self.pretrained!r} and {self.vectors!r}"
            )


class TextEncoder(nn.Module):
    """Encodes captions into token features and a global vector, with the tokenizer that belongs to the encoder.

    Args:
        config: settings.
        model: a BERT-, RoBERTa-, or GPT-2-like model of transformers.
        tokenizer: the tokenizer that goes with it.
    """

    model: "PreTrainedModel"

    def __init__(self, config: TextEncoderConfig, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"):
        super().__init__()
        self.config = config
        # Checkpoints may be in half precision; weights are trained in float32, with or without autocast.
        self.model = model.float()
        prepare_tokenizer(tokenizer)
        self.tokenizer = tokenizer
        has_pooler = getattr(model, "pooler", None) is not None
        if config.pooling == "pooler" and not has_pooler:
            raise ValueError(f"pooling must not be 'pooler': a {model.config.model_type} has no pooling layer")
        if config.pooling != "pooler" and has_pooler:
            model.register_module("pooler", None)  # it would get no gradient
        self.width = model.config.hidden_size
        self.token_width = self._word_embeddings().embedding_dim
        layers = model.config.num_hidden_layers
        self.token_layer = layer_number(config.token_layer, layers)
        if not 0 <= self.token_layer <= layers:
            raise ValueError(
                f"token_layer must be in 0..{layers}, the layers of the text encoder, got {self.token_layer}"
            )

    @classmethod
    def create(cls, config: TextEncoderConfig, captions: Iterable[str]) -> "TextEncoder":
        """Load the checkpoint that `config` names, or create a new encoder with a tokenizer trained on `captions`.

        Raises:
            ValueError: the checkpoint cannot be loaded, or `captions` is empty but needed.
        """
        if config.pretrained is not None:
            return cls(config, *load_pretrained(config.pretrained))
        transformers = import_transformers()
        tokenizer = train_tokenizer(captions, config.vocabulary)
        bert = transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=max(config.max_tokens, 128),
        )
        return cls(config, transformers.BertModel(bert, add_pooling_layer=config.pooling == "pooler"), tokenizer)

    @classmethod
    def load(cls, config: TextEncoderConfig, folder: Path) -> "TextEncoder":
        """Load the architecture and tokenizer saved by `save`. The weights are loaded with those of the whole model."""
        transformers = import_transformers()
        # Otherwise transformers may pick a different attention implementation, equal only up to rounding.
        saved = transformers.AutoConfig.from_pretrained(folder, _attn_implementation_autoset=False)
        model = text_tower(transformers.AutoModel.from_config(saved))
        return cls(config, model, transformers.AutoTokenizer.from_pretrained(folder))

    def save(self, folder: Path) -> None:
        """Save the architecture and the tokenizer, without the weights."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, captions: list[str], reserve: int = 0) -> dict[str, Tensor]:
        """Padded `input_ids`, `attention_mask`, `special_tokens_mask` `[N, L_t]` and character `offset_mapping`.

        Args:
            captions: N texts; long ones are truncated and keep their end token.
            reserve: number of pseudo-tokens that `forward` will insert; captions are truncated to leave space for them.

        Raises:
            TypeError: `captions` is not a list of strings.
            ValueError: there is no caption; `reserve` is negative or leaves no space for a caption.
        """
        checks.strings("captions", captions)
        checks.at_least("the number of captions", len(captions), 1)
        limit = self._max_tokens()
        shortest = self.tokenizer.num_special_tokens_to_add() + 1
        if reserve < 0:
            raise ValueError(f"reserve must be at least 0 pseudo-tokens, got {reserve}")
        if limit - reserve < shortest:
            raise ValueError(
                f"reserve: {reserve} pseudo-tokens leave no space for a caption of {shortest} tokens; max_tokens and "
                f"the text encoder's positions allow {limit} in total"
            )
        return dict(
            self.tokenizer(
                list(captions),
                padding=True,
                truncation=True,
                max_length=limit - reserve,
                return_tensors="pt",
                return_special_tokens_mask=True,
                return_offsets_mapping=True,
            )
        )

    def _max_tokens(self) -> int:
        """The number of tokens that configuration, tokenizer, and position embeddings allow."""
        positions = getattr(self.model.config, "max_position_embeddings", 512)
        if positions < 1:  # no limit, as in XLNet
            positions = 512
        embedding = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        if embedding is not None and embedding.padding_idx is not None:
            positions -= embedding.padding_idx + 1  # RoBERTa's positions start after the padding index
        return min(self.config.max_tokens, self.tokenizer.model_max_length, positions)

    def forward(
        self, tokens: dict[str, Tensor], pseudo_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode the output of `tokenize`, with pseudo-tokens before the end token of each caption (5.9), (5.14).

        Args:
            tokens: N captions, padded on the right.
            pseudo_tokens: input embeddings `[N, P, token_width]`, floating point, on the model's device, or None. They
                are treated like word embeddings: they get positions, and the text attends to them.

        Returns:
            Global features `[N, width]`; token features `[N, L_t + P, width]`; the mask `[N, L_t + P]`, boolean, that
            excludes padding, special tokens, and pseudo-tokens; and the character span of each token
            `[N, L_t + P, 2]`. "mean" pooling includes the pseudo-tokens.

        Raises:
            TypeError, ValueError: `pseudo_tokens` do not match the captions or the encoder, or padding is on the left.
        """
        words = self._word_embeddings()
        inputs = {name: value.to(words.weight.device) for name, value in tokens.items()}
        if pseudo_tokens is None:
            model_inputs = {"input_ids": inputs["input_ids"]}
        else:
            self._check_pseudo_tokens(tokens, pseudo_tokens)
            ends = inputs["attention_mask"].sum(1) - 1
            model_inputs = {"inputs_embeds": _insert(words(inputs["input_ids"]), pseudo_tokens, ends)}
            shape = pseudo_tokens.shape[:2]
            for name, value in (("attention_mask", 1), ("special_tokens_mask", 1), ("offset_mapping", 0)):
                new = inputs[name].new_full((*shape, *inputs[name].shape[2:]), value)
                inputs[name] = _insert(inputs[name], new, ends)
        attention = inputs["attention_mask"]
        outputs = self.model(
            **model_inputs,
            attention_mask=attention,
            output_hidden_states=self.token_layer < self.model.config.num_hidden_layers,
        )
        if outputs.hidden_states is None:
            features = outputs.last_hidden_state
        else:
            features = outputs.hidden_states[self.token_layer]
        mask = attention.bool() & ~inputs["special_tokens_mask"].bool()
        return self._pool(outputs, attention), features, mask, inputs["offset_mapping"]

    def _word_embeddings(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def _pool(self, outputs: Any, attention: Tensor) -> Tensor:
        if self.config.pooling == "pooler":
            return outputs.pooler_output
        features = outputs.last_hidden_state
        if self.config.pooling == "cls":
            return features[:, 0]
        if self.config.pooling == "last":
            return features[torch.arange(features.shape[0], device=features.device), attention.sum(1) - 1]
        weight = attention[..., None].to(features.dtype)
        return (features * weight).sum(1) / weight.sum(1)

    def _check_pseudo_tokens(self, tokens: dict[str, Tensor], pseudo_tokens: Tensor) -> None:
        device = self._word_embeddings().weight.device
        attention = tokens["attention_mask"]
        checks.embeddings("pseudo_tokens", pseudo_tokens, "N, P, D_T")
        if "inputs_embeds" not in inspect.signature(type(self.model).forward).parameters:
            raise ValueError(f"pseudo_tokens: a {self.model.config.model_type} takes no embeddings in place of words")
        captions, length = attention.shape
        count, inserted, width = pseudo_tokens.shape
        if count != captions or width != self.token_width:
            raise ValueError(
                f"pseudo_tokens must have shape [N, P, D_T] with N = {captions} captions and D_T = {self.token_width}, "
                f"got {[count, inserted, width]}"
            )
        if pseudo_tokens.device != device:
            raise ValueError(f"pseudo_tokens must be on the model's device ({device}), got {pseudo_tokens.device}")
        if length + inserted > self._max_tokens():
            raise ValueError(
                f"pseudo_tokens: {inserted} pseudo-tokens and {length} tokens exceed the {self._max_tokens()} that "
                f"max_tokens and the text encoder's positions allow; tokenize with reserve={inserted}"
            )
        if bool((attention[:, 1:] > attention[:, :-1]).any()) or not bool(attention[:, 0].all()):
            raise ValueError("tokens must be padded on the right to insert pseudo_tokens, got left padding")


def _insert(value: Tensor, new: Tensor, position: Tensor) -> Tensor:
    """Insert `new [N, P, ...]` into `value [N, L, ...]` before index `position [N]`: `[N, L + P, ...]`."""
    length = value.shape[1]
    inserted = new.shape[1]
    first = position[:, None]
    index = torch.arange(length + inserted, device=value.device)
    after_first = torch.where(index < first + inserted, length + index - first, index - inserted)
    source = torch.where(index < first, index, after_first)  # index into the concatenation of `value` and `new`
    return torch.cat([value, new], 1)[torch.arange(len(value), device=value.device)[:, None], source]


def train_tokenizer(captions: Iterable[str], vocabulary: int) -> "PreTrainedTokenizerFast":
    """Train a lowercase byte-level BPE tokenizer with BERT's special tokens.

    The result depends only on the set of captions.

    Args:
        captions: training data.
        vocabulary: maximum size of the vocabulary.

    Raises:
        ValueError: `captions` is empty.
    """
    return train_bpe(captions, vocabulary, _SPECIAL_TOKENS, "[CLS] $A [SEP]")
