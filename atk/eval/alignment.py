"""Token-by-frame similarity of one clip (thesis Figure 3.3), and how often the best frame falls inside an event."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atk.data.side_files import Event
from atk.eval.embed import ClipEmbedding, evaluating

# A word is what stands between blanks and sentence punctuation, with at least one letter or digit.
_APART = r"\s.,;:!?\"()\[\]{}…«»“”"
_WORD = re.compile(rf"[^{_APART}]*\w[^{_APART}]*")
_TEXTS = 64  # captions embedded at a time


@dataclass(frozen=True)
class AlignmentMap:
    """Cosine similarity of words and frames of one clip.

    Args:
        words: the rows.
        similarity: `[W, L_a]` float32 on the CPU.
        times: centre of each frame `[L_a]`, in seconds from the start of the clip.
        frame_seconds: duration of a frame.
        places: for each row the text it comes from, and its first and last (exclusive) character there.
    """

    words: list[str]
    similarity: Tensor
    times: Tensor
    frame_seconds: float
    places: list[tuple[str, int, int]]

    def rows_of(self, phrase: str) -> list[int]:
        """The rows of the words of `phrase`, wherever it occurs (in any case)."""
        return [
            row
            for row, (text, start, end) in enumerate(self.places)
            if any(first < end and start < last for first, last in _occurrences(phrase, text))
        ]

    def inside(self, events: Iterable[Event]) -> Tensor:
        """Which frames `[L_a]` touch one of `events`: their centre is inside, give or take half a frame."""
        slack = self.frame_seconds / 2
        hits = torch.zeros(len(self.times), dtype=torch.bool)
        for event in events:
            hits |= (self.times >= event.start - slack) & (self.times <= event.end + slack)
        return hits


@torch.no_grad()
def similarity_map(model: nn.Module, clip: ClipEmbedding, text: str | Sequence[str]) -> AlignmentMap:
    """Cosine similarity of every word with every frame.

    A word's similarity is the mean over the tokens that share characters with it; words that no token stands for
    (a caption cut at the tokenizer's limit) are left out.

    Args:
        model: gives `embed_text` and `frame_seconds`.
        clip: embedded clip.
        text: a caption, whose words become the rows, or a list of words or phrases: each is then embedded by itself
            and becomes one row.

    Raises:
        ValueError: there is no word in `text`.
    """
    with evaluating(model):
        maps = list(_maps(model, [clip], [text]))
    return maps[0]


def _maps(
    model: nn.Module, clips: Sequence[ClipEmbedding], texts: Sequence[str | Sequence[str]]
) -> Iterator[AlignmentMap]:
    """`similarity_map` of each pair, the texts embedded together."""
    places = [_places(text) for text in texts]
    captions = list(dict.fromkeys(place[0] for rows in places for place in rows))
    tokens = {}
    for first in range(0, len(captions), _TEXTS):
        block = captions[first : first + _TEXTS]
        embedded = model.embed_text(block)
        for caption, *parts in zip(block, embedded.tokens, embedded.mask, embedded.offsets, strict=True):
            vectors, mask, offsets = (part.cpu() for part in parts)
            tokens[caption] = vectors[mask].float(), offsets[mask]
    for clip, rows in zip(clips, places, strict=True):
        kept, similarity = [], []
        for caption, start, end in rows:
            vectors, offsets = tokens[caption]
            pieces = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            if pieces.any():
                kept.append((caption, start, end))
                similarity.append((vectors[pieces] @ clip.frames.T).mean(0))
        if not kept:
            raise ValueError(f"text has no word that the tokenizer knows: {rows[0][0]!r}")
        words = [caption[start:end] for caption, start, end in kept]
        yield AlignmentMap(words, torch.stack(similarity), clip.times, model.frame_seconds, kept)


def _occurrences(phrase: str, text: str) -> list[tuple[int, int]]:
    """Where `phrase` stands in `text`, in any case, from the start of a word."""
    return [match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}", text, re.IGNORECASE)]


def _places(text: str | Sequence[str]) -> list[tuple[str, int, int]]:
    if isinstance(text, str):
        places = [(text, *match.span()) for match in _WORD.finditer(text)]
    else:
        places = [(word, 0, len(word)) for word in text if _WORD.search(word)]
    if not places:
        raise ValueError(f"text must hold at least one word, got {text!r}")
    return places


def alignment_score(
    model: nn.Module,
    clips: dict[str, ClipEmbedding],
    captions: dict[str, Sequence[str]],
    events: Iterable[Event],
) -> dict[str, float]:
    """How often the best frame for the words of an event falls inside the event.

    For each phrase of a clip's events, in the clip's first caption that holds it, the frames are scored by the most
    similar of the phrase's words, as in (3.6): an article need not point anywhere. It counts as right if the best frame
    touches the event (its centre is inside, give or take half a frame). Events of one clip with the same phrase are one
    case, in which any of them will do; of frames that tie for the best all must touch it.

    Args:
        model: gives `embed_text` and `frame_seconds`.
        clips: embedded clips by file name; events of other files are passed over.
        captions: the captions of each of them.
        events: what sounds when.

    Returns:
        `"right"` and `"chance"` (the share of frames that touch the event) in percent, averaged over phrases;
        `"phrases"`, their number; `"left_out"`, the number of phrases that no caption of their clip holds. Without
        phrases `"right"` and `"chance"` are NaN.

    Raises:
        ValueError: a similarity is NaN.
    """
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        if event.file_name in clips:
            groups.setdefault((event.file_name, event.phrase.lower()), []).append(event)
    cases = []
    for (name, phrase), group in groups.items():
        caption = next((text for text in captions[name] if _occurrences(phrase, text)), None)
        if caption is not None:
            cases.append((name, phrase, caption, group))
    right, chance, scored = 0, 0.0, 0
    with evaluating(model), torch.no_grad():
        maps = _maps(model, [clips[case[0]] for case in cases], [case[2] for case in cases])
        for (name, phrase, _, group), alignment in zip(cases, maps, strict=True):
            rows = alignment.rows_of(phrase)
            if not rows:  # beyond the tokenizer's limit
                continue
            curve = alignment.similarity[rows].amax(0)
            if curve.isnan().any():
                raise ValueError(f"similarity of {phrase!r} to the frames of {name} is NaN")
            inside = alignment.inside(group)
            right += int(inside[curve == curve.max()].all())
            chance += inside.double().mean().item()
            scored += 1
    share = 100 / scored if scored else float("nan")
    return {"right": share * right, "chance": share * chance, "phrases": scored, "left_out": len(groups) - scored}
