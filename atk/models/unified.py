"""One model with an audio encoder, a text encoder, and a caption decoder: it retrieves, captions, and subtracts."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from atk.models.caption_model import CaptionModel, create_difference_block
from atk.models.captioner_config import DIFFERENCES, Difference
from atk.models.clap import CLAP, AudioEmbedding, ModelConfig
from atk.models.decoder import CaptionDecoder, DecoderConfig
from atk.models.saved import find_model, load_weights, naming_file
from atk.ops.checks import at_least, one_of

_DECODER = "decoder"


@dataclass(frozen=True)
class UnifiedModelConfig(ModelConfig):
    """Audio encoder, text encoder, and shared space of a contrastive model, and a decoder that captions.

    Args:
        difference: Diff block that removes references from a clip before it is captioned: "mask", "subtraction", or
            "none", which captions single clips only.
        heads: number of attention heads of the mask.
        decoder: caption decoder. It attends to the frames of the audio encoder's last layer, also if
            `audio.frame_layer` takes the frames of the shared space from a lower one.
        trim_references: as in `atk.models.captioner_config.CaptionerConfig`.
    """

    difference: Difference = "mask"
    heads: int = 4
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    trim_references: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("difference", self.difference, DIFFERENCES)
        at_least("heads", self.heads, 1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "UnifiedModelConfig":
        """Restore a configuration from the output of `dataclasses.asdict`."""
        decoder = DecoderConfig(**values["decoder"])
        trims = values.get("trim_references", False)
        added = cls(difference=values["difference"], heads=values["heads"], decoder=decoder, trim_references=trims)
        return added.with_encoders(ModelConfig.from_dict(values))

    def with_encoders(self, other: ModelConfig) -> "UnifiedModelConfig":
        """This configuration with the encoders and the shared space of another one."""
        return replace(self, **{field.name: getattr(other, field.name) for field in fields(ModelConfig)})


class ClipFeatures(NamedTuple):
    """Clips in the shared space, and their features `Z [N, L_a, width]` for the decoder, with the same mask."""

    embedding: AudioEmbedding
    features: Tensor

    @property
    def decoder_input(self) -> tuple[Tensor, Tensor]:
        """The features and the mask."""
        return self.features, self.embedding.mask


class Unified(CLAP, CaptionModel):
    """A CLAP and a captioner that share the audio encoder.

    Args:
        config: settings.
        clap: the encoders; their modules become part of this model.
        decoder: the caption decoder.

    Raises:
        ValueError: the heads of the Diff block do not divide the decoder's width.
    """

    config: UnifiedModelConfig  # pyrefly: ignore[bad-override-mutable-attribute]  # set only once
    encoders = (*CLAP.encoders, "encode_clips", "decode_loss")

    def __init__(self, config: UnifiedModelConfig, clap: CLAP, decoder: CaptionDecoder):
        super().__init__(config, clap.audio_encoder, clap.text_encoder, clap.audio_projection, clap.text_projection)
        encoder: Any = self.audio_encoder
        self.decoder = decoder
        self.projection = nn.Linear(encoder.width, decoder.width)
        self.difference_block = create_difference_block(config, decoder.width)
        if hasattr(encoder, "append_last"):
            encoder.append_last = config.audio.frame_layer is not None

    @classmethod
    def create(cls, config: ModelConfig, captions: Iterable[str]) -> "Unified":
        """Create a model to train, with the pretrained weights that `config` names and random weights elsewhere.

        Args:
            config: a `UnifiedModelConfig`.
            captions: training data of the tokenizers that are not pretrained.

        Raises:
            ValueError: a checkpoint cannot be loaded, or `captions` is empty but needed.
        """
        captions = list(captions)
        return cls.extend(CLAP.create(config, captions), config, captions)

    @classmethod
    def extend(cls, clap: CLAP, config: ModelConfig, captions: Iterable[str]) -> "Unified":
        """Add a new decoder to a contrastive model; arguments and errors are those of `create`."""
        assert isinstance(config, UnifiedModelConfig)
        return cls(config.with_encoders(clap.config), clap, CaptionDecoder.create(config.decoder, captions))

    def reconfigured(self, config: UnifiedModelConfig) -> "Unified":
        """As in `CaptionModel`."""
        return Unified(config, self, self.decoder)

    def encode_clips(self, audio: Tensor, lengths: Tensor, project_frames: bool = True) -> ClipFeatures:
        """`encode_audio` and `encode` of the same waveforms, with one pass of the audio encoder."""
        pooled, frames, mask = self.audio_encoder(audio, lengths)
        width: Any = self.audio_encoder.width
        shared, last = frames[..., :width], frames[..., -width:]
        shared = self.audio_projection(shared) if project_frames else shared
        embedding = AudioEmbedding(self.audio_projection(pooled), shared, mask)
        return ClipFeatures(embedding, self.projection(last))

    def encode_audio(self, audio: Tensor, lengths: Tensor, project_frames: bool = True) -> AudioEmbedding:
        """As in `CLAP`."""
        return self.encode_clips(audio, lengths, project_frames).embedding

    def encode(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As in `CaptionModel`."""
        return self.encode_clips(audio, lengths).decoder_input

    def decode_loss(
        self,
        clips: tuple[Tensor, Tensor],
        given: tuple[Tensor, Tensor] | None,
        present: Tensor,
        tokens: dict[str, Tensor],
        common: bool | Tensor = False,
    ) -> Tensor:
        """Cross-entropy of captions, as `cross_entropy` does from waveforms.

        Args:
            clips: features `[N, L, width]` and mask `[N, L]` of the clips.
            given: the same of the P references of `present_references`; None if there are none, and then the weights
                of the Diff block get a gradient of 0, because sharded ranks must agree on the weights that have one.
            present: which of the R references of each clip is present `[N, R]`, boolean.
            tokens: output of `decoder.tokenize` for N captions.
            common: as in `difference`.
        """
        z, mask = clips
        if given is not None:
            z = self.subtract(z, *given, present, common=common)
        elif self.difference_block is not None:
            z = z + 0.0 * self.difference_block(z[:1], z[:1]).sum()
        return self.decoder(z, mask, tokens)

    def save_settings(self, folder: str | Path) -> None:
        """Save everything but the weights to `folder`: configuration and tokenizers."""
        super().save_settings(folder)
        self.decoder.save(Path(folder) / _DECODER)

    @classmethod
    def saved_config(cls, name: str | Path) -> UnifiedModelConfig:
        """The configuration of the model that `from_pretrained` loads; arguments and errors are the same."""
        return _find(name)[1]

    @classmethod
    def from_pretrained(cls, name: str | Path, tokenizer: str | None = None) -> "Unified":
        """Load a model saved by `save_pretrained`, in evaluation mode.

        Args:
            name: a run folder (its best checkpoint), another local folder, or a hub repository.
            tokenizer: None; its tokenizers are saved with the model.

        Raises:
            ValueError: `name` holds no such model.
        """
        folder, config = _find(name)
        with naming_file(folder):
            decoder = CaptionDecoder.load(config.decoder, folder / _DECODER)
            model = cls(config, CLAP.without_weights(config, folder), decoder)
            load_weights(model, folder)
        return model.eval()


def is_unified(values: dict[str, Any]) -> bool:
    """Whether a `config.json` with these values is that of a unified model."""
    return "decoder" in values and "text" in values


def starting_config(name: str | Path, wanted: UnifiedModelConfig) -> UnifiedModelConfig:
    """The configuration of a model that starts from a saved one: its own, or `wanted` with its encoders.

    Args:
        name: as in `atk.models.from_pretrained`: a unified model, or a contrastive model to which a decoder is added.
        wanted: the settings of a new decoder.

    Raises:
        ValueError: `name` holds no such model.
    """
    if not Path(name).is_file() and is_unified(find_model(name)[1]):
        return Unified.saved_config(name)
    return wanted.with_encoders(CLAP.saved_config(name))


def _find(name: str | Path) -> tuple[Path, UnifiedModelConfig]:
    folder, values = find_model(name)
    if not is_unified(values):
        raise ValueError(f"{folder} holds no unified model: its configuration lacks a text encoder or a decoder")
    with naming_file(folder / "config.json"):
        return folder, UnifiedModelConfig.from_dict(values)
