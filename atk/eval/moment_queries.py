"""Queries for moments: the phrases of a text that must sound one after the other, and the curve of each phrase."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from atk.eval.embed import EmbeddingModel, embed_tokens, evaluating
from atk.ops.checks import strings

_FORWARD = re.compile(
    r"\s*(?:,|;|\band\b)?\s*\b(?:and\s+)?(?:then|afterwards?|after\s+that|followed\s+by|before)\b\s*,?\s*",
    re.IGNORECASE,
)
_FIRST = re.compile(r"^\s*first,?\s+", re.IGNORECASE)
_BACKWARD = re.compile(r"\s*,?\s*\b(?:after|preceded\s+by)\b\s*", re.IGNORECASE)


def phrases_of(query: str) -> tuple[str, ...]:
    """The phrases of a query, in the order in which they must sound.

    "A, then B", "A and then B", "A followed by B", "A before B", and "A, after that B" mean A and then B; "B after A"
    and "B preceded by A" do, too. Any other query is one phrase.

    Raises:
        ValueError: the query has no word.
    """
    if not re.search(r"\w", query):
        raise ValueError("query must contain at least one word, got an empty text")
    parts = _FORWARD.split(query)
    if len(parts) > 1:
        parts[0] = _FIRST.sub("", parts[0])
    phrases = [phrase.strip(" ,;.") for part in parts for phrase in reversed(_BACKWARD.split(part))]
    return tuple(phrase for phrase in phrases if re.search(r"\w", phrase)) or (query.strip(),)


class Phrases:
    """Distinct phrases, embedded, whose curves are computed from frames.

    Args:
        model: embeds the phrases.
        phrases: P phrases; those that occur several times are embedded once.

    Raises:
        TypeError: `phrases` are not strings.
        ValueError: the tokenizer leaves nothing of a phrase.
    """

    def __init__(self, model: EmbeddingModel, phrases: Sequence[str]):
        strings("phrases", phrases)
        distinct = list(dict.fromkeys(phrases))
        with evaluating(model):
            embedded = embed_tokens(model, distinct)
        for phrase, text in zip(distinct, embedded, strict=True):
            if not len(text.tokens):
                raise ValueError(f"query: the tokenizer leaves nothing of {phrase!r}")
        self._tokens = {phrase: text.tokens for phrase, text in zip(distinct, embedded, strict=True)}

    def curves(self, frames: Tensor, phrases: Sequence[str] | None = None) -> Tensor:
        """Scores `[T, P]` of frames `[T, D]`: the highest cosine of a frame and a token of the phrase, as in (3.6).

        Args:
            frames: frames of unit length.
            phrases: the phrases of the columns; None = the distinct ones, in order.
        """
        rows = [self._tokens[phrase] for phrase in (self._tokens if phrases is None else phrases)]
        return torch.stack([(frames @ row.T).amax(1) for row in rows], 1) if rows else frames.new_zeros(len(frames), 0)

    def columns(self, phrases: Sequence[str]) -> list[int]:
        """The columns of phrases among the distinct ones."""
        names = list(self._tokens)
        return [names.index(phrase) for phrase in phrases]
