"""The decoder of the captioner: a pretrained BART decoder from transformers, or a small one trained from scratch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atk.models.generation import GenerationConfig
from atk.models.tokenizer import import_transformers, load_tokenizer, special_ids, train_bpe
from atk.ops.checks import at_least, strings

if TYPE_CHECKING:
    from transformers import BartForConditionalGeneration, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutput

_FEATURE_POSITIONS = 1024  # as in BART
# Spelled and ordered as in BART, so that they get BART's token ids.
_SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True)
class DecoderConfig:
    """A pretrained BART decoder, or the size of a new one with a tokenizer trained on the captions.

    Args:
        pretrained: local folder or hub name of a BART checkpoint; None = train from scratch with the settings below.
        width: width of the Transformer and of the audio features that it attends to.
        layers: number of Transformer layers.
        heads: number of attention heads.
        dropout: dropout rate.
        vocabulary: maximum size of a tokenizer trained on the captions.
        max_tokens: longer captions are truncated to this many tokens, including the end token.
        tokenizer: local folder or hub name of the tokenizer of a decoder that is trained from scratch, such as
            `facebook/bart-base`; None = train one on the captions.
        activation_dropout: dropout rate within the feed-forward layers.
        feature_positions: add learned positions to the audio features, then apply LayerNorm and dropout, as BART's
            encoder does before its first layer.
    """

    pretrained: str | None = None
    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    vocabulary: int = 4000
    max_tokens: int = 64
    tokenizer: str | None = None
    activation_dropout: float = 0.0
    feature_positions: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "vocabulary"):
            at_least(name, getattr(self, name), 1)
        at_least("max_tokens", self.max_tokens, 3)
        for name in ("dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.pretrained is not None and self.tokenizer is not None:
            raise ValueError(f"tokenizer: a pretrained decoder brings its own, got {self.tokenizer!r}")
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")


class CaptionDecoder(nn.Module):
    """Decodes audio features into captions, with the tokenizer of the captions. BART's text encoder is removed.

    Args:
        config: settings.
        bart: a `transformers.BartForConditionalGeneration`.
        tokenizer: the tokenizer that goes with it.
    """

    bart: "BartForConditionalGeneration"

    def __init__(
        self, config: DecoderConfig, bart: "BartForConditionalGeneration", tokenizer: "PreTrainedTokenizerBase"
    ):
        super().__init__()
        self.config = config
        # Checkpoints may be in half precision; weights are trained in float32, with or without autocast.
        self.bart = bart.float()
        self.tokenizer = tokenizer
        if config.feature_positions:  # the encoder without its layers
            bart.model.encoder.layers = nn.ModuleList()
            bart.config.encoder_layers = 0
        else:  # the features come from audio, so the encoder's weights would get no gradient
            bart.model.encoder = None
        assert bart.config.d_model is not None  # every BART configuration sets it
        self.width = bart.config.d_model
        self.max_positions = bart.config.max_position_embeddings
        self._check_length(config.max_tokens)
        # The generation settings of a checkpoint, such as the minimum length of a summary, do not suit captions.
        self.bart.generation_config = import_transformers().GenerationConfig(
            bos_token_id=bart.config.bos_token_id,
            eos_token_id=bart.config.eos_token_id,
            pad_token_id=bart.config.pad_token_id,
            decoder_start_token_id=bart.config.decoder_start_token_id,
        )

    @classmethod
    def create(cls, config: DecoderConfig, captions: Iterable[str]) -> "CaptionDecoder":
        """Load the checkpoint that `config` names, or create a new decoder with a tokenizer trained on `captions`.

        Raises:
            ValueError: the checkpoint cannot be loaded, or `captions` is empty but needed.
        """
        if config.pretrained is not None:
            return cls(config, *_pretrained(config.pretrained))
        if config.tokenizer is None:
            tokenizer = train_bpe(captions, config.vocabulary, _SPECIAL_TOKENS, "$A </s>", padding_side="right")
        else:
            tokenizer = load_tokenizer(config.tokenizer)
        transformers = import_transformers()
        bart = transformers.BartConfig(
            vocab_size=len(tokenizer),
            d_model=config.width,
            encoder_layers=config.layers,
            encoder_attention_heads=config.heads,
            encoder_ffn_dim=4 * config.width,
            decoder_layers=config.layers,
            decoder_attention_heads=config.heads,
            decoder_ffn_dim=4 * config.width,
            dropout=config.dropout,
            attention_dropout=config.dropout,
            activation_dropout=config.activation_dropout,
            max_position_embeddings=max(config.max_tokens, _FEATURE_POSITIONS if config.feature_positions else 128),
            **special_ids(tokenizer),
        )
        return cls(config, transformers.BartForConditionalGeneration(bart), tokenizer)

    @classmethod
    def load(cls, config: DecoderConfig, folder: Path) -> "CaptionDecoder":
        """Load the architecture and tokenizer saved by `save`. The weights are loaded with those of the whole model."""
        transformers = import_transformers()
        bart = transformers.BartForConditionalGeneration(transformers.BartConfig.from_pretrained(folder))
        return cls(config, bart, transformers.AutoTokenizer.from_pretrained(folder))

    def save(self, folder: Path) -> None:
        """Save the architecture and the tokenizer, without the weights."""
        self.bart.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def tokenize(self, captions: list[str]) -> dict[str, Tensor]:
        """Targets of the decoder: padded `input_ids` and `attention_mask` `[N, L_t]`, int64.

        Captions are truncated to `config.max_tokens` tokens and keep the end token.

        Raises:
            TypeError: `captions` is not a list of strings.
            ValueError: there is no caption.
        """
        strings("captions", captions)
        at_least("the number of captions", len(captions), 1)
        return dict(
            self.tokenizer(
                list(captions),
                padding=True,
                truncation=True,
                max_length=self.config.max_tokens,
                return_tensors="pt",
                return_token_type_ids=False,
            )
        )

    def forward(self, features: Tensor, mask: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the tokens of captions (4.3), a float32 scalar.

        Args:
            features: audio features to caption `[N, L, width]`.
            mask: valid frames `[N, L]`, boolean.
            tokens: output of `tokenize` for N captions.

        Raises:
            ValueError: the numbers of captions and features differ.
        """
        if len(tokens["input_ids"]) != len(features):
            raise ValueError(
                f"tokens must hold {len(features)} captions, one per clip of audio, got {len(tokens['input_ids'])}"
            )
        targets = tokens["input_ids"].to(features.device)
        valid = tokens["attention_mask"].to(features.device).bool()
        start_id = self.bart.config.decoder_start_token_id
        assert start_id is not None
        start = targets.new_full((len(targets), 1), start_id)
        logits = self.bart(
            encoder_outputs=self._encoder_output(features, mask),
            attention_mask=mask.long(),
            decoder_input_ids=torch.cat([start, targets[:, :-1]], 1),
            use_cache=False,
        ).logits
        return F.cross_entropy(logits[valid].float(), targets[valid])

    @torch.no_grad()
    def generate(
        self,
        features: Tensor,
        mask: Tensor,
        beams: int,
        max_tokens: int | None,
        generation: GenerationConfig | None = None,
    ) -> list[str]:
        """Caption features by beam search.

        Args:
            features: audio features to caption `[N, L, width]`.
            mask: valid frames `[N, L]`, boolean.
            beams: beam width; 1 = greedy search.
            max_tokens: maximum length of a caption in tokens; None = `config.max_tokens`.
            generation: further settings of the search; None = the defaults.

        Raises:
            ValueError: `beams`, `max_tokens`, or `generation.min_length` is out of range.
        """
        if beams < 1:
            raise ValueError(f"beams must be at least 1, got {beams}")
        max_tokens = self.config.max_tokens if max_tokens is None else max_tokens
        self._check_length(max_tokens)
        generation = generation or GenerationConfig()
        if generation.min_length > max_tokens:
            raise ValueError(f"min_length must be at most max_tokens ({max_tokens}), got {generation.min_length}")
        generate: Any = self.bart.generate  # transformers annotates `self` with a protocol that BART does not match
        ids = generate(
            encoder_outputs=self._encoder_output(features, mask),
            attention_mask=mask.long(),
            max_new_tokens=max_tokens,
            do_sample=False,
            **generation.options(beams),
        )
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return [text.strip() for text in texts]

    def _encoder_output(self, features: Tensor, mask: Tensor) -> "BaseModelOutput":
        """What the decoder attends to `[N, L, width]`."""
        if not self.config.feature_positions:
            return import_transformers().modeling_outputs.BaseModelOutput(last_hidden_state=features)
        if features.shape[1] > self.max_positions:
            raise ValueError(
                f"audio must have at most {self.max_positions} frames, the positions of audio features, got "
                f"{features.shape[1]}; shorten clip_seconds"
            )
        return self.bart.model.encoder(inputs_embeds=features, attention_mask=mask.long())

    def _check_length(self, max_tokens: int) -> None:
        if not 1 <= max_tokens <= self.max_positions:
            raise ValueError(
                f"max_tokens must be between 1 and {self.max_positions}, the decoder's positions, got {max_tokens}"
            )


def _pretrained(name: str) -> "tuple[BartForConditionalGeneration, PreTrainedTokenizerBase]":
    """BART and its tokenizer from a local folder or the hub."""
    transformers = import_transformers()
    try:
        model_type = transformers.AutoConfig.from_pretrained(name).model_type
        if model_type != "bart":
            raise ValueError(f"expected a BART checkpoint, got model type {model_type!r}")
        bart, info = transformers.BartForConditionalGeneration.from_pretrained(name, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"decoder.pretrained: cannot load {name!r}: {reason}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"decoder.pretrained: {name!r} lacks weights ({len(missing)} in all; the first is {missing[0]})"
        )
    return bart, tokenizer
