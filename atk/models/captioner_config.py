"""Configuration of the captioner: its encoder, Diff block, and decoder."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from atk.models.cnn14 import Cnn14Config
from atk.models.decoder import DecoderConfig
from atk.ops.checks import one_of

Difference = Literal["mask", "subtraction", "none"]
DIFFERENCES = get_args(Difference)


@dataclass(frozen=True)
class CaptionerConfig:
    """Audio encoder, Diff block, and decoder of a captioner.

    Args:
        difference: Diff block that removes the references from a clip: "mask" masks the clip's features by
            cross-attention to the references, "subtraction" subtracts their features frame by frame, and "none" builds
            a captioner without references.
        heads: number of attention heads of the mask.
        audio: audio encoder.
        decoder: caption decoder.
        trim_references: hide the silence before and after the sound of a reference from the mask; subtraction keeps it,
            as it needs references that are aligned in time. Captioners that were saved without this setting attend to
            the silence, too.
    """

    difference: Difference = "mask"
    heads: int = 4
    audio: Cnn14Config = field(default_factory=Cnn14Config)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    trim_references: bool = True

    def __post_init__(self) -> None:
        one_of("difference", self.difference, DIFFERENCES)
        if self.heads < 1:
            raise ValueError(f"heads must be at least 1, got {self.heads}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CaptionerConfig":
        """Restore a configuration from the output of `dataclasses.asdict`."""
        fields: dict[str, Any] = {"trim_references": False, **values}
        fields["audio"] = Cnn14Config(**values["audio"])
        fields["decoder"] = DecoderConfig(**values["decoder"])
        return cls(**fields)
