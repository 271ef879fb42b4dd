"""Settings of fine-tuning: which weights are trained, from which step, and through which adapters."""

from dataclasses import dataclass, field

from atk.ops.checks import at_least


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022) in the linear layers of both towers, whose own weights stay frozen.

    Needs peft (`pip install 'audio-text-kernels[lora]'`). Checkpoints hold the model with the adapters merged into its
    weights, so everything that reads models reads them.

    Args:
        rank: rank of the adapters; 0 adds none.
        alpha: the adapters are scaled by alpha / rank.
        dropout: dropout rate of the input of the adapters.
        targets: patterns of the names of linear layers, such as "text_encoder.*query"; `*` matches anything. Empty:
            every linear layer of both towers.
    """

    rank: int = 0
    alpha: int = 16
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        at_least("lora.rank", self.rank, 0)
        if not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora.alpha must be above 0 and lora.dropout in [0, 1), got {self.alpha} and {self.dropout}"
            )


@dataclass(frozen=True)
class TuneConfig:
    """What is trained. The defaults train every weight from the first step.

    Frozen layers are in evaluation mode: no dropout, and batch norms keep their statistics.

    Args:
        freeze: patterns of the names of weights that are not trained, such as "text_encoder.*"; `*` matches anything.
        freeze_audio: number of layers of the audio encoder that are not trained, counted from the input, together with
            everything before them.
        freeze_text: the same for the text encoder or the decoder of a captioner.
        unfreeze_every: gradual unfreezing: start with the weights outside of both towers, and every so many steps also
            train the next layer of each tower, from the output down; 0 trains all from the start.
        lora: low-rank adapters.
    """

    freeze: list[str] = field(default_factory=list)
    freeze_audio: int = 0
    freeze_text: int = 0
    unfreeze_every: int = 0
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        for name in ("freeze_audio", "freeze_text", "unfreeze_every"):
            at_least(f"tune.{name}", getattr(self, name), 0)
        if isinstance(self.freeze, str):  # a single pattern in a YAML file
            object.__setattr__(self, "freeze", [self.freeze])
