"""The text encoder: any BERT- or RoBERTa-like checkpoint through transformers, or a small one trained from scratch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from atk.models.tokenizer import import_transformers, train_bpe

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
        pooling: global vector from the first token ("cls") or the mean over valid tokens ("mean").
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
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling must be 'cls' or 'mean', got {self.pooling!r}")
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3, got {self.max_tokens}")


class TextEncoder(nn.Module):
    """Captions to token features, with the tokenizer that belongs to them."""

    def __init__(self, config: TextEncoderConfig, model: nn.Module, tokenizer):
        super().__init__()
        # float(): checkpoints may be stored in half precision, weights are trained in float32 (under autocast or not).
        self.config, self.model, self.tokenizer = config, model.float(), tokenizer
        if getattr(model, "pooler", None) is not None:  # a pooler is not used here and would get no gradient
            model.pooler = None
        self.width = model.config.hidden_size
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
        return cls(config, transformers.BertModel(bert, add_pooling_layer=False), tokenizer)

    @classmethod
    def load(cls, config: TextEncoderConfig, folder: Path) -> "TextEncoder":
        """The architecture and tokenizer saved by `save` in `folder`; the weights come with the whole model's."""
        transformers = import_transformers()
        model = transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))
        return cls(config, model, transformers.AutoTokenizer.from_pretrained(folder))

    def save(self, folder: Path) -> None:
        """Architecture and tokenizer, without the weights."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """Padded `input_ids`, `attention_mask`, `special_tokens_mask` `[N, L_t]` and character `offset_mapping`."""
        return dict(
            self.tokenizer(
                list(captions),
                padding=True,
                truncation=True,
                max_length=self._longest(),
                return_tensors="pt",
                return_special_tokens_mask=True,
                return_offsets_mapping=True,
            )
        )

    def _longest(self) -> int:
        """Most tokens that configuration, tokenizer and position embeddings allow."""
        positions = getattr(self.model.config, "max_position_embeddings", 512)
        if "roberta" in self.model.config.model_type:  # its positions start after the padding index
            positions -= self.model.config.pad_token_id + 1
        return min(self.config.max_tokens, self.tokenizer.model_max_length, positions)

    def forward(self, tokens: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode what `tokenize` returned.

        Returns:
            Global features `[N, width]`, token features `[N, L_t, width]`, and the mask `[N, L_t]` of tokens that
            stand for text: neither padding nor `[CLS]`, `[SEP]` and their like.
        """
        attention = tokens["attention_mask"]
        outputs = self.model(
            input_ids=tokens["input_ids"],
            attention_mask=attention,
            output_hidden_states=self.token_layer < self.model.config.num_hidden_layers,
        )
        features = outputs.last_hidden_state
        words = features if outputs.hidden_states is None else outputs.hidden_states[self.token_layer]
        mask = attention.bool() & ~tokens["special_tokens_mask"].bool()
        if self.config.pooling == "cls":
            return features[:, 0], words, mask
        weight = attention[..., None].to(features.dtype)
        return (features * weight).sum(1) / weight.sum(1), words, mask


def train_tokenizer(captions: Iterable[str], vocabulary: int):
    """A lower-case byte-level BPE tokenizer with BERT's special tokens; the same captions give the same tokenizer.

    Raises:
        ValueError: there is no caption to train on.
    """
    return train_bpe(captions, vocabulary, _SPECIAL_TOKENS, "[CLS] $A [SEP]")
