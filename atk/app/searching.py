"""Answer a query: the best moments and the best recordings, as rows of tables."""

from pathlib import Path
from typing import NamedTuple

from atk.app.library import Library
from atk.eval.moment_search import search_indexed_moments
from atk.eval.moments import Moment, MomentConfig, Span
from atk.eval.outputs import in_unicode
from atk.ops.checks import at_least

MOST_RESULTS = 50
LONGEST_QUERY = 500  # characters


class Hit(NamedTuple):
    """A moment of a recording, or a whole recording, whose moment then has no parts."""

    path: Path | str
    name: str
    moment: Moment


class Answer(NamedTuple):
    """The `moments` and the `clips` that answer a query, best first.

    `upload` is the file that was searched, or None for the folder; `phrases` are those of the query.
    """

    upload: str | None
    query: str
    phrases: tuple[str, ...]
    moments: list[Hit]
    clips: list[Hit]


def answer(library: Library, query: str, upload: str | None, top: int, config: MomentConfig) -> Answer:
    """Search the folder, or an uploaded file.

    Raises:
        ValueError: the query is empty or too long, `top` is out of range, or there is nothing to search in.
        AudioError: the uploaded file cannot be used.
    """
    if len(query) > LONGEST_QUERY:
        raise ValueError(f"query: at most {LONGEST_QUERY} characters, got {len(query)}")
    at_least("results", top, 1)
    if top > MOST_RESULTS:
        raise ValueError(f"results: at most {MOST_RESULTS}, got {top}")
    index = library.index(upload)
    result = search_indexed_moments(index, [query], config=config, top=top)
    root = Path(index.header.folder)
    moments = []
    for hit in result.hits[0]:
        path = hit.path if isinstance(hit.path, Path) else str(hit.path)
        moments.append(Hit(path, shown_name(path, root), hit.moment))
    clips = []
    if upload is None:
        for score, path in index.search([query], top=top)[0]:
            clips.append(Hit(path, shown_name(path, root), Moment(0.0, 0.0, score, ())))
    return Answer(upload, query, result.phrases[0], moments, clips)


def shown_name(path: Path | str, root: Path) -> str:
    """A recording's name as it is shown: relative to the folder that was searched."""
    path = Path(path)
    return in_unicode(str(path.relative_to(root) if path != root and path.is_relative_to(root) else path.name))


def moment_rows(hits: list[Hit]) -> list[list[str]]:
    """Rows of the table of moments: score, recording, and times."""
    return [
        [
            f"{hit.moment.score:.3f}",
            hit.name,
            f"{hit.moment.start:.2f}-{hit.moment.end:.2f} s{_parts(hit.moment.parts)}",
        ]
        for hit in hits
    ]


def _parts(parts: tuple[Span, ...]) -> str:
    if len(parts) < 2:
        return ""
    return " (" + ", ".join(f"{part.start:.2f}-{part.end:.2f}" for part in parts) + ")"


def clip_rows(hits: list[Hit]) -> list[list[str]]:
    """Rows of the table of recordings: score and recording."""
    return [[f"{hit.moment.score:.3f}", hit.name] for hit in hits]
