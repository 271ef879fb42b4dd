"""The text encoder: any BERT- or RoBERTa-like checkpoint through transformers, or a small one trained from scratch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from atk.models.tokenizer import import_transformers, train_bpe
from atk.ops import checks

POOLINGS = ("cls", "mean", "last", "pooler")
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
        pretrained: local folder or hub name of a BERT- or RoBERTa-like checkpoint; None = from scratch, as below.
        pooling: global vector from the first token ("cls"), the mean over valid tokens ("mean"), the end token ("last")
            or the encoder's own pooling layer ("pooler").
        max_tokens: longer captions are cut to this many tokens.
        vocabulary: most entries in a tokenizer trained on the captions.
        width: width of the Transformer.
        layers: Transformer layers.
        heads: attention heads.
        dropout: dropout rate.
        token_layer: layer whose output the tokens are taken from, 0 = the word embeddings; None = the last, as in the
            thesis. Tokens of lower layers know less of the rest of the caption, so alignment maps are sharper.
    """

    pretrained: str | None = None
    pooling: str = "cls"
    max_tokens: int = 77
    vocabulary: int = 4000
    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    token_layer: int | None = None

    def __post_init__(self):
        checks.one_of("pooling", self.pooling, POOLINGS)
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3, got {self.max_tokens}")


class TextEncoder(nn.Module):
    """Captions to token features, with the tokenizer that belongs to them."""

    def __init__(self, config: TextEncoderConfig, model: nn.Module, tokenizer):
        super().__init__()
        # float(): checkpoints may be stored in half precision, weights are trained in float32 (under autocast or not).
        self.config, self.model, self.tokenizer = config, model.float(), tokenizer
        has_pooler = getattr(model, "pooler", None) is not None
        if config.pooling == "pooler" and not has_pooler:
            raise ValueError(f"pooling: a {model.config.model_type} has no pooling layer, so it must not be 'pooler'")
        if config.pooling != "pooler" and has_pooler:  # it would get no gradient
            model.pooler = None
        self.width = model.config.hidden_size
        self.token_width = model.get_input_embeddings().embedding_dim
        layers = model.config.num_hidden_layers
        self.token_layer = layers if config.token_layer is None else config.token_layer
        if not 0 <= self.token_layer <= layers:
            raise ValueError(
                f"token_layer must be in 0..{layers}, the layers of the text encoder, got {self.token_layer}"
            )

    @classmethod
    def create(cls, config: TextEncoderConfig, captions: Iterable[str]) -> "TextEncoder":
        """The pretrained checkpoint named in `config`, or a new encoder with a tokenizer trained on `captions`.

        Raises:
            ValueError: the checkpoint cannot be loaded, or `captions` is empty where they are needed.
        """
        transformers = import_transformers()
        if config.pretrained is not None:
            try:
                model = transformers.AutoModel.from_pretrained(config.pretrained)
                tokenizer = transformers.AutoTokenizer.from_pretrained(config.pretrained)
            except (OSError, ValueError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"text.pretrained: cannot load {config.pretrained!r}: {reason}") from error
            return cls(config, model, tokenizer)
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
        """The architecture and tokenizer saved by `save` in `folder`; the weights come with the whole model's."""
        transformers = import_transformers()
        # Else transformers 4.50 takes another attention than the saved model's, equal only up to rounding.
        saved = transformers.AutoConfig.from_pretrained(folder, _attn_implementation_autoset=False)
        model = transformers.AutoModel.from_config(saved)
        return cls(config, model, transformers.AutoTokenizer.from_pretrained(folder))

    def save(self, folder: Path) -> None:
        """Architecture and tokenizer, without the weights."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, captions: list[str], reserve: int = 0) -> dict[str, Tensor]:
        """Padded `input_ids`, `attention_mask`, `special_tokens_mask` `[N, L_t]` and character `offset_mapping`.

        Args:
            captions: N texts; long ones are cut and keep their end token.
            reserve: pseudo-tokens that `forward` will insert; captions are cut to leave room for them.

        Raises:
            ValueError: `reserve` is below 0 or leaves no room for a caption.
        """
        longest, fewest = self._longest(), self.tokenizer.num_special_tokens_to_add() + 1
        if reserve < 0:
            raise ValueError(f"reserve must be at least 0 pseudo-tokens, got {reserve}")
        if longest - reserve < fewest:
            raise ValueError(
                f"reserve: {reserve} pseudo-tokens leave no room for a caption ({fewest} tokens or more); "
                f"max_tokens and the text encoder's positions allow {longest} in all"
            )
        return dict(
            self.tokenizer(
                list(captions),
                padding=True,
                truncation=True,
                max_length=longest - reserve,
                return_tensors="pt",
                return_special_tokens_mask=True,
                return_offsets_mapping=True,
            )
        )

    def _longest(self) -> int:
        """Most tokens that configuration, tokenizer and position embeddings allow."""
        positions = getattr(self.model.config, "max_position_embeddings", 512)
        embedding = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        if embedding is not None and embedding.padding_idx is not None:  # RoBERTa's start after the padding index
            positions -= embedding.padding_idx + 1
        return min(self.config.max_tokens, self.tokenizer.model_max_length, positions)

    def forward(
        self, tokens: dict[str, Tensor], pseudo_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode what `tokenize` returned, with pseudo-tokens before the end token of each caption (5.9), (5.14).

        Args:
            tokens: N captions, padded on the right.
            pseudo_tokens: input embeddings `[N, P, token_width]`, floating, on the model's device, or None. They are
                read as word embeddings are: positions run on over them and the text attends to them.

        Returns:
            Global features `[N, width]`, token features `[N, L_t + P, width]`, the mask `[N, L_t + P]` of tokens that
            stand for text (not padding, `[CLS]`, `[SEP]` and their like, nor pseudo-tokens), and the characters of each
            `[N, L_t + P, 2]`. The mean of "mean" pooling counts the pseudo-tokens.

        Raises:
            TypeError, ValueError: `pseudo_tokens` do not fit the captions or the encoder, or padding is on the left.
        """
        words = self.model.get_input_embeddings()
        inputs = {name: value.to(words.weight.device) for name, value in tokens.items()}
        if pseudo_tokens is None:
            given = {"input_ids": inputs["input_ids"]}
        else:
            self._check_pseudo_tokens(tokens, pseudo_tokens)
            ends = inputs["attention_mask"].sum(1) - 1
            given = {"inputs_embeds": _insert(words(inputs["input_ids"]), pseudo_tokens, ends)}
            places = pseudo_tokens.shape[:2]
            for name, value in (("attention_mask", 1), ("special_tokens_mask", 1), ("offset_mapping", 0)):
                new = inputs[name].new_full((*places, *inputs[name].shape[2:]), value)
                inputs[name] = _insert(inputs[name], new, ends)
        attention = inputs["attention_mask"]
        outputs = self.model(
            **given,
            attention_mask=attention,
            output_hidden_states=self.token_layer < self.model.config.num_hidden_layers,
        )
        features = outputs.last_hidden_state
        tokens_of = features if outputs.hidden_states is None else outputs.hidden_states[self.token_layer]
        mask = attention.bool() & ~inputs["special_tokens_mask"].bool()
        return self._pool(outputs, attention), tokens_of, mask, inputs["offset_mapping"]

    def _pool(self, outputs, attention: Tensor) -> Tensor:
        if self.config.pooling == "pooler":
            return outputs.pooler_output
        features = outputs.last_hidden_state
        if self.config.pooling == "cls":
            return features[:, 0]
        if self.config.pooling == "last":
            return features[torch.arange(len(features), device=features.device), attention.sum(1) - 1]
        weight = attention[..., None].to(features.dtype)
        return (features * weight).sum(1) / weight.sum(1)

    def _check_pseudo_tokens(self, tokens: dict[str, Tensor], pseudo_tokens: Tensor) -> None:
        device, attention = self.model.get_input_embeddings().weight.device, tokens["attention_mask"]
        checks.embeddings("pseudo_tokens", pseudo_tokens, "N, P, D_T")
        captions, length = attention.shape
        count, extra, width = pseudo_tokens.shape
        if count != captions or width != self.token_width:
            raise ValueError(
                f"pseudo_tokens must have shape [N, P, D_T] with N = {captions} captions and D_T = {self.token_width}, "
                f"got {[count, extra, width]}"
            )
        if pseudo_tokens.device != device:
            raise ValueError(f"pseudo_tokens must be on the model's device ({device}), got {pseudo_tokens.device}")
        if length + extra > self._longest():
            raise ValueError(
                f"pseudo_tokens: {extra} of them and {length} tokens are more than the {self._longest()} that "
                f"max_tokens and the text encoder's positions allow; tokenize with reserve={extra}"
            )
        if bool((attention[:, 1:] > attention[:, :-1]).any()) or not bool(attention[:, 0].all()):
            raise ValueError("tokens must be padded on the right where there are pseudo_tokens, got left padding")


def _insert(value: Tensor, new: Tensor, places: Tensor) -> Tensor:
    """`value [N, L, ...]` with `new [N, P, ...]` from place `places [N]` on: `[N, L + P, ...]`."""
    length, extra, first = value.shape[1], new.shape[1], places[:, None]
    index = torch.arange(length + extra, device=value.device)
    moved = torch.where(index < first + extra, length + index - first, index - extra)
    source = torch.where(index < first, index, moved)
    return torch.cat([value, new], 1)[torch.arange(len(value), device=value.device)[:, None], source]


def train_tokenizer(captions: Iterable[str], vocabulary: int):
    """A lower-case byte-level BPE tokenizer with BERT's special tokens; the same captions give the same tokenizer.

    Raises:
        ValueError: there is no caption to train on.
    """
    return train_bpe(captions, vocabulary, _SPECIAL_TOKENS, "[CLS] $A [SEP]")
