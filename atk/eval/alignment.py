"""Token-by-frame similarity of a clip and a caption, and how often the best frame falls inside the event."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from atk.data.side_files import Event
from atk.eval.embed import ClipEmbedding, EmbeddingModel, embed_tokens, evaluating

# Words are separated by white space and sentence punctuation, and contain a letter, digit, or underscore.
_SEPARATORS = r"\s.,;:!?\"()\[\]{}…«»“”"
_WORD = re.compile(rf"[^{_SEPARATORS}]*\w[^{_SEPARATORS}]*")


class TextSpan(NamedTuple):
    """Characters `start` to `end - 1` of `text`."""

    text: str
    start: int
    end: int

    @property
    def words(self) -> str:
        """The characters of the span."""
        return self.text[self.start : self.end]


@dataclass(frozen=True)
class AlignmentMap:
    """Cosine similarity of W words and the L_a frames of a clip.

    Args:
        words: the word or phrase of each row.
        similarity: `[W, L_a]` float32, on the CPU.
        times: center of each frame `[L_a]`, in seconds from the start of the clip.
        frame_seconds: duration of a frame, in seconds.
        spans: where the word of each row is in the text.
    """

    words: list[str]
    similarity: Tensor
    times: Tensor
    frame_seconds: float
    spans: list[TextSpan]

    def rows_of(self, phrase: str) -> list[int]:
        """The rows of the words that overlap with an occurrence of `phrase` in the text, ignoring case."""
        return [
            row
            for row, span in enumerate(self.spans)
            if any(start < span.end and span.start < end for start, end in _occurrences(phrase, span.text))
        ]

    def frames_inside(self, events: Iterable[Event]) -> Tensor:
        """Boolean mask `[L_a]` of the frames whose center is inside an event, give or take half a frame."""
        tolerance = self.frame_seconds / 2
        inside = torch.zeros(len(self.times), dtype=torch.bool)
        for event in events:
            inside |= (self.times >= event.start - tolerance) & (self.times <= event.end + tolerance)
        return inside


@torch.no_grad()
def similarity_map(model: EmbeddingModel, clip: ClipEmbedding, text: str | Sequence[str]) -> AlignmentMap:
    """Cosine similarity of every word and every frame (thesis Figure 3.3).

    The similarity of a word is the mean over the tokens that share characters with it. Words without a token, because
    the tokenizer truncated the caption, are omitted.

    Args:
        model: embeds the text.
        clip: embedded clip.
        text: a caption, with one row per word; or a list of words or phrases, each embedded separately as one row.

    Raises:
        ValueError: `text` contains no word.
    """
    with evaluating(model):
        alignment = next(_similarity_maps(model, [clip], [text]))
    if not alignment.words:
        raise ValueError(f"text contains no word that the tokenizer keeps: {text!r}")
    return alignment


def _similarity_maps(
    model: EmbeddingModel, clips: Sequence[ClipEmbedding], texts: Sequence[str | Sequence[str]]
) -> Iterator[AlignmentMap]:
    """`similarity_map` of each pair, without rows if the tokenizer keeps no word; texts are embedded in batches."""
    spans_of_texts = [_word_spans(text) for text in texts]
    unique = list(dict.fromkeys(span.text for spans in spans_of_texts for span in spans))
    tokens = dict(zip(unique, embed_tokens(model, unique), strict=True)) if unique else {}
    for clip, spans in zip(clips, spans_of_texts, strict=True):
        kept: list[TextSpan] = []
        similarity = [clip.frames.new_zeros(0, len(clip.frames))]
        for span in spans:
            _, vectors, _, offsets = tokens[span.text]
            overlaps = (offsets[:, 0] < span.end) & (offsets[:, 1] > span.start)
            if overlaps.any():
                kept.append(span)
                similarity.append((vectors[overlaps] @ clip.frames.T).mean(0, keepdim=True))
        words = [span.words for span in kept]
        yield AlignmentMap(words, torch.cat(similarity), clip.times, model.frame_seconds, kept)


def _occurrences(phrase: str, text: str) -> list[tuple[int, int]]:
    """Character spans of `phrase` in `text`, ignoring case, from the start of a word."""
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}", text, re.IGNORECASE)]


def _word_spans(text: str | Sequence[str]) -> list[TextSpan]:
    if isinstance(text, str):
        spans = [TextSpan(text, *match.span()) for match in _WORD.finditer(text)]
    else:
        spans = [TextSpan(phrase, 0, len(phrase)) for phrase in text if _WORD.search(phrase)]
    if not spans:
        raise ValueError(f"text must contain at least one word, got {text!r}")
    return spans


class _Case(NamedTuple):
    file: str
    phrase: str
    caption: str  # the first caption of the clip that contains the phrase
    events: list[Event]


def alignment_score(
    model: EmbeddingModel,
    clips: Mapping[str, ClipEmbedding],
    captions: Mapping[str, Sequence[str]],
    events: Iterable[Event],
) -> dict[str, float]:
    """How often the best frame for the words of an event falls inside the event.

    The score of a frame for a phrase is its highest similarity to any word of the phrase, as in (3.6), because articles
    do not point to a time. The caption is the clip's first one that contains the phrase. A phrase counts as right if
    the best frame has its center inside the event, give or take half a frame. If several frames tie for the best, all
    of them must. Events of a clip with the same phrase form one case, and any of them counts.

    Args:
        model: embeds the captions.
        clips: embedded clips, by file name. Events of other files are ignored.
        captions: captions of each clip, by file name.
        events: the events.

    Returns:
        `"right"`: percentage of phrases that are right; `"chance"`: mean percentage of frames inside the event;
        `"phrases"`: number of phrases scored; `"left_out"`: number of phrases that no caption of their clip contains,
        or of which the tokenizer keeps no word. `"right"` and `"chance"` are NaN without phrases.

    Raises:
        ValueError: a similarity is NaN.
    """
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        if event.file_name in clips:
            groups.setdefault((event.file_name, event.phrase.lower()), []).append(event)
    cases: list[_Case] = []
    for (file, phrase), group in groups.items():
        caption = next((text for text in captions[file] if _occurrences(phrase, text)), None)
        if caption is not None:
            cases.append(_Case(file, phrase, caption, group))
    right = 0
    chance = 0.0
    scored = 0
    with evaluating(model), torch.no_grad():
        maps = _similarity_maps(model, [clips[case.file] for case in cases], [case.caption for case in cases])
        for case, alignment in zip(cases, maps, strict=True):
            rows = alignment.rows_of(case.phrase)
            if not rows:  # the tokenizer truncated the phrase, or has no vector for its words
                continue
            curve = alignment.similarity[rows].amax(0)
            if curve.isnan().any():
                raise ValueError(f"similarity of {case.phrase!r} to the frames of {case.file} is NaN")
            inside = alignment.frames_inside(case.events)
            right += int(inside[curve == curve.max()].all())
            chance += inside.double().mean().item()
            scored += 1
    scale = 100 / scored if scored else float("nan")
    return {"right": scale * right, "chance": scale * chance, "phrases": scored, "left_out": len(groups) - scored}
