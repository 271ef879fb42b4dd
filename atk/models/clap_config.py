"""Configuration of an audio-text model: its two encoders and the space they share."""

from dataclasses import dataclass, field, replace
from typing import Any

from atk.models.audio import AudioEncoderConfig
from atk.models.clap_transformers import ClapConfig
from atk.models.msclap import MsClapConfig
from atk.models.text import TextEncoderConfig


@dataclass(frozen=True)
class ModelConfig:
    """Audio encoder, text encoder, and the width of the space they share.

    `clap` or `msclap` replaces `dim`, `audio`, and `text`, except for `max_tokens`, `vocabulary`, and `token_layer` of
    `text`.

    Args:
        dim: width of the shared space.
        audio: audio encoder.
        text: text encoder.
        clap: a ClapModel of transformers in place of both encoders; truncates clips to 10 s.
        msclap: MS-CLAP 2023 in place of both encoders; truncates clips to 7 s.
    """

    dim: int = 128
    audio: AudioEncoderConfig = field(default_factory=AudioEncoderConfig)
    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    clap: ClapConfig = field(default_factory=ClapConfig)
    msclap: MsClapConfig = field(default_factory=MsClapConfig)

    def __post_init__(self) -> None:
        if self.clap.enabled and self.msclap.enabled:
            raise ValueError("only one of clap and msclap can be set, got both")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelConfig":
        """Restore a configuration from the output of `dataclasses.asdict`."""
        # Models saved by early versions have neither layers, which were the last ones, nor `clap` and `msclap`.
        audio: dict[str, Any] = {"frame_layer": None, **values["audio"], "channels": tuple(values["audio"]["channels"])}
        text: dict[str, Any] = {"token_layer": None, **values["text"]}
        return cls(
            dim=values["dim"],
            audio=AudioEncoderConfig(**audio),
            text=TextEncoderConfig(**text),
            clap=ClapConfig(**values.get("clap", {})),
            msclap=MsClapConfig(**values.get("msclap", {})),
        )


def with_layer_numbers(config: ModelConfig, low: bool = True) -> ModelConfig:
    """The configuration with "auto" replaced by the layers it stands for, so that a saved model keeps them.

    Without `low`, these are the last ones.
    """
    audio, text = config.audio, config.text
    low &= not (config.clap.enabled or config.msclap.enabled)
    if audio.frame_layer == "auto":
        is_low = low and audio.type == "auto" and audio.pretrained is None
        audio = replace(audio, frame_layer=min(1, audio.layers) if is_low else None)
    if text.token_layer == "auto":
        text = replace(text, token_layer=0 if low and text.pretrained is None else None)
    return replace(config, audio=audio, text=text)
