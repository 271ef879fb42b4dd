"""Captions as the mean of word vectors, such as GloVe's, in place of a text encoder."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atk.models.text import TextEncoder, TextEncoderConfig
from atk.ops import checks

_WORD = re.compile(r"[^\W_]+(?:['&.+-][^\W_]+)*")
_PART = re.compile(r"[^\W_]+")
_WORDS = "words.txt"  # in a saved model
_UNKNOWN = 0  # row of the table for padding and captions without a known word; all zeros


class WordVectors(nn.Module):
    """Captions to word vectors and their mean, with the interface of `TextEncoder`.

    A word is looked up as it is, then in lowercase, then by its parts ("rock'n'roll" by "rock", "n", and "roll"). Words
    without a vector are left out; a caption without any other words becomes a vector of zeros.

    Args:
        config: settings; `train_vectors` says whether the vectors are trained.
        words: the words that have a vector.
        width: width of the vectors.
    """

    def __init__(self, config: TextEncoderConfig, words: list[str], width: int):
        super().__init__()
        self.config = config
        self.words = words
        self.width = self.token_width = width
        self.index = {word: row for row, word in enumerate(words, _UNKNOWN + 1)}
        self.table = nn.Embedding(1 + len(words), width, padding_idx=_UNKNOWN)
        self.table.weight.requires_grad_(config.train_vectors)

    @classmethod
    def create(cls, config: TextEncoderConfig, captions: Iterable[str]) -> "WordVectors":
        """Read the vectors of the words of the captions, and of the first `config.vocabulary` words of the file.

        Words of the captions that have no vector are counted and named on stderr.

        Raises:
            ValueError: the file cannot be read, is not in the format of GloVe, or has no word of the captions.
        """
        texts = list(captions)
        wanted = {form for text in texts for match in _WORD.finditer(text) for form in _forms(match[0])}
        vectors = _read_vectors(Path(str(config.vectors)), wanted, config.vocabulary)
        encoder = cls(config, list(vectors), len(next(iter(vectors.values()))))
        with torch.no_grad():
            encoder.table.weight[_UNKNOWN + 1 :] = torch.from_numpy(np.stack(list(vectors.values())))
        encoder._report_unknown(texts)
        return encoder

    @classmethod
    def load(cls, config: TextEncoderConfig, folder: Path) -> "WordVectors":
        """Load the words saved by `save`. The vectors are loaded with the weights of the whole model."""
        width, *words = (folder / _WORDS).read_text(encoding="utf-8").split("\n")
        return cls(config, words, int(width))

    def save(self, folder: Path) -> None:
        """Save the words, without their vectors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _WORDS).write_text("\n".join([str(self.width), *self.words]), encoding="utf-8")

    def tokenize(self, captions: list[str], reserve: int = 0) -> dict[str, Tensor]:
        """As `TextEncoder.tokenize`; the tokens are words with a vector, or a single unknown one.

        Raises:
            TypeError: `captions` is not a list of strings.
            ValueError: there is no caption, or `reserve` is not 0.
        """
        checks.strings("captions", captions)
        checks.at_least("the number of captions", len(captions), 1)
        if reserve:
            raise ValueError(f"reserve must be 0, as word vectors take no pseudo-tokens, got {reserve}")
        rows = [list(self._known(caption))[: self.config.max_tokens] or [(_UNKNOWN, 0, 0)] for caption in captions]
        tokens = torch.zeros(len(rows), max(map(len, rows)), 3, dtype=torch.int64)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.int64)
        for row, words in enumerate(rows):
            tokens[row, : len(words)] = torch.tensor(words)
            mask[row, : len(words)] = 1
        return {
            "input_ids": tokens[..., 0],
            "attention_mask": mask,
            "special_tokens_mask": 1 - mask,
            "offset_mapping": tokens[..., 1:],
        }

    def forward(
        self, tokens: dict[str, Tensor], pseudo_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The means `[N, width]`, the vectors `[N, L_t, width]`, their mask, and character spans `[N, L_t, 2]`.

        Raises:
            ValueError: `pseudo_tokens` is not None.
        """
        if pseudo_tokens is not None:
            raise ValueError("pseudo_tokens must be None for word vectors, which have no input to insert them into")
        inputs = {name: value.to(self.table.weight.device) for name, value in tokens.items()}
        vectors = self.table(inputs["input_ids"])
        mask = inputs["attention_mask"].bool()
        mean = (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return mean, vectors, mask, inputs["offset_mapping"]

    def _known(self, caption: str) -> Iterator[tuple[int, int, int]]:
        """Row of the table and character span of each word, or part of a word, that has a vector."""
        for match in _WORD.finditer(caption):
            for span in (match, *_PART.finditer(caption, match.start(), match.end())):
                row = next((self.index[form] for form in (span[0], span[0].lower()) if form in self.index), None)
                if row is not None:
                    yield row, *span.span()
                if row is not None and span is match:
                    break

    def _report_unknown(self, captions: list[str]) -> None:
        """Print how many words of the captions have no vector, and the first of them."""
        words = list(dict.fromkeys(match[0] for text in captions for match in _WORD.finditer(text)))
        unknown = [word for word in words if not any(True for _ in self._known(word))]
        if len(unknown) == len(words):
            raise ValueError(f"text.vectors: {self.config.vectors} has no word of the captions")
        if unknown:
            names = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            print(f"text.vectors: {len(unknown)} of {len(words)} words have no vector: {names}", file=sys.stderr)


TextTower = TextEncoder | WordVectors


def text_tower(config: TextEncoderConfig) -> type[TextTower]:
    """The class of the text encoder that a configuration names."""
    return TextEncoder if config.vectors is None else WordVectors


def _forms(word: str) -> list[str]:
    """What a word may be listed as: itself, in lowercase, or by its parts."""
    parts = _PART.findall(word)
    return [word, word.lower(), *parts, *map(str.lower, parts)]


def _read_vectors(path: Path, wanted: set[str], first: int) -> dict[str, np.ndarray]:
    """The vectors of the words `wanted`, and of the `first` words of the file, float32."""
    vectors: dict[str, np.ndarray] = {}
    width = None
    try:
        with path.open(encoding="utf-8") as file:
            for count, line in enumerate(file, 1):
                word, *values = line.rstrip().split(" ")
                if count == 1 and len(values) == 1 and word.isdecimal():  # word2vec and fastText begin with counts
                    first += 1
                    continue
                width = len(values) if width is None else width
                if count > first and word not in wanted:
                    continue
                if len(values) != width:  # some of GloVe's words contain spaces
                    word, values = line.rstrip().rsplit(" ", width)[0], line.rstrip().rsplit(" ", width)[1:]
                vectors.setdefault(word, np.array(values, dtype=np.float32))
                if len(vectors[word]) != width or not width or not np.isfinite(vectors[word]).all():
                    raise ValueError(f"line {count} has no {width} finite numbers after a word")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"text.vectors: {path}: not a file of word vectors, a word and its numbers a line ({reason})"
        ) from None
    if not vectors:
        raise ValueError(f"text.vectors: {path} has no word of the captions")
    return vectors
