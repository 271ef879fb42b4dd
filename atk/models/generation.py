"""Settings of the beam search that writes captions."""

from dataclasses import dataclass

from atk.ops.checks import at_least


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of the beam search besides its width, with the names and meanings that they have in transformers.

    Args:
        min_length: minimum length of a caption in tokens, including the start token.
        no_repeat_ngram_size: no sequence of this many tokens occurs twice in a caption; 0 allows all.
        length_penalty: exponent of the length by which the score of a caption is divided; above 0 favors long ones.
        early_stopping: end the search when there are as many complete captions as beams.
    """

    min_length: int = 0
    no_repeat_ngram_size: int = 0
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        at_least("min_length", self.min_length, 0)
        at_least("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)

    def options(self, beams: int) -> dict[str, object]:
        """Keyword arguments of `generate` in transformers, which warns of settings without effect."""
        options: dict[str, object] = {"num_beams": beams}
        for name in ("min_length", "no_repeat_ngram_size"):
            if value := getattr(self, name):
                options[name] = value
        if beams > 1:
            options |= {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return options
