"""An index of recordings that is searched without encoding them again."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from atk.device import pick_device
from atk.eval.embed import CaptionEmbedding, EmbeddingModel, embed_tokens, evaluating
from atk.eval.index_parts import Part, Queries
from atk.eval.index_store import Header, Manifest, fingerprint
from atk.eval.long_audio import Frames
from atk.eval.scores import SCORES, Score
from atk.models import from_pretrained
from atk.models.clap import CLAP
from atk.ops.checks import at_least, one_of, strings

CANDIDATES = 3000
_TRIES = 3  # to open an index that another process replaces
_DECODED = 1 << 16  # frames at a time


class Index:
    """The frames and global vectors of recordings, on disk; only what a search needs is read. `open` opens it.

    Attributes:
        folder: where the index is.
        header: what it was made from and how.
        parts: its files.
    """

    def __init__(self, folder: Path, header: Header, parts: list[Part]):
        self.folder = folder
        self.header = header
        self.parts = parts
        self._bases = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        self._places: dict[str, tuple[int, int]] | None = None
        self._model: EmbeddingModel | None = None

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Open an index that `build_index` or `atk index` made. Later changes to it are not seen.

        Raises:
            FileNotFoundError: there is none, or a part of it is missing.
            ValueError: it is damaged, or of another version.
        """
        folder = Path(folder)
        for last in (*[False] * (_TRIES - 1), True):
            manifest = Manifest.read(folder)
            try:
                return cls(folder, manifest.header, manifest.open(folder))
            except FileNotFoundError:  # merged into another one since the list was read
                if last:
                    raise
        raise AssertionError

    def __len__(self) -> int:
        """Number of recordings."""
        return sum(int(part.live.sum()) for part in self.parts)

    def paths(self) -> Iterator[Path | str]:
        """The recordings, in no particular order: paths of files, or names of what lies inside larger ones."""
        return (self._path(*place) for place in self._live())

    def frames(self, path: str | Path) -> Frames:
        """The stored frames of a recording, as `Embedder.frames` returns them but for the rounding.

        Raises:
            KeyError: the index has no such recording.
        """
        if self._places is None:
            self._places = {str(self._path(*place)): place for place in self._live()}
        place, row = self._places[str(path)]
        part = self.parts[place]
        first, end = part.offsets[row : row + 2].tolist()
        return Frames(part.decoded(first, end), part.times[first:end])

    def load_model(self, device: str = "auto") -> EmbeddingModel:
        """Load the model that the index was made with, and keep it for `search`.

        Raises:
            ValueError: it cannot be loaded, or its weights have changed.
        """
        target = pick_device(device)
        if self.header.source.startswith(os.sep) and not Path(self.header.source).exists():
            raise ValueError(
                f"{self.folder}: its model {self.header.source} no longer exists; run atk index with its new place"
            )
        model = from_pretrained(self.header.source, self.header.tokenizer)
        if not isinstance(model, CLAP):
            raise ValueError(f"{self.header.source} holds a {type(model).__name__} now; a CLAP is needed")
        return self.use(model.to(target).eval())

    def use(self, model: EmbeddingModel) -> EmbeddingModel:
        """Keep a model for `search`, and return it.

        Raises:
            ValueError: the index was not made with its weights.
        """
        self.check(model)
        self._model = model
        return model

    def model_for(self, model: EmbeddingModel | None = None) -> EmbeddingModel:
        """A model, checked to be that of the index; None = the one that was loaded, or is loaded now."""
        if model is None:
            return self._model or self.load_model()
        self.check(model)
        return model

    def check(self, model: EmbeddingModel) -> None:
        """Check that the index was made with the weights of a model.

        Raises:
            ValueError: it was not.
        """
        if fingerprint(model) != self.header.fingerprint:
            raise ValueError(
                f"{self.folder} was made by another model, or by {self.header.source} before its weights changed; "
                "make it again"
            )

    def search(
        self,
        queries: Sequence[str],
        *,
        score: Score | None = None,
        top: int = 10,
        candidates: int = CANDIDATES,
        exact: bool = False,
        model: EmbeddingModel | None = None,
    ) -> list[list[tuple[float, Path | str]]]:
        """Rank the recordings by their similarity to text queries, as `atk.eval.search.search_all` does.

        Args:
            queries: texts to search for.
            score: similarity that ranks: see `atk.eval.scores.similarities`. None = "max_mean" if the model was trained
                on frames and tokens, else "global".
            top: number of recordings to return for each query.
            candidates: with "max_mean" and "both", only as many recordings are compared frame by frame: those with the
                most similar global vectors.
            exact: compare all frames of the index.
            model: embeds the queries; the one that the index was made with, in float32. None loads it at the first
                call.

        Returns:
            For each query, the similarity and path of the best recordings, best first.

        Raises:
            TypeError: `queries` is not a list of strings.
            ValueError: an argument is out of range, a query is empty, or the model is not that of the index.
        """
        strings("queries", queries)
        if not queries or not all(query.strip() for query in queries):
            raise ValueError("query must contain at least one word, got an empty text")
        model = self.model_for(model)
        with evaluating(model):
            texts = embed_tokens(model, queries)
        return self.search_vectors(texts, score=score, top=top, candidates=candidates, exact=exact)

    def search_vectors(
        self,
        queries: Sequence[CaptionEmbedding],
        *,
        score: Score | None = None,
        top: int = 10,
        candidates: int = CANDIDATES,
        exact: bool = False,
    ) -> list[list[tuple[float, Path | str]]]:
        """As `search`, with embedded queries, such as those of `Embedder.embed_text(..., tokens=True)`."""
        score = self.header.score if score is None else score
        one_of("score", score, SCORES)
        at_least("top", top, 1)
        at_least("candidates", candidates, 1)
        scores = self._global_scores(queries)
        if score != "global":
            by_frames = self._all_rows(queries) if exact else self._best_rows(queries, scores, max(top, candidates))
            scores = by_frames if score == "max_mean" else (by_frames + scores) / 2
        best = scores.topk(min(top, len(self)), dim=0)
        return [
            [(value, self._path(*self._place(row))) for value, row in zip(values, rows, strict=True)]
            for values, rows in zip(best.values.T.tolist(), best.indices.T.tolist(), strict=True)
        ]

    def _global_scores(self, queries: Sequence[CaptionEmbedding]) -> Tensor:
        """Cosines of global vectors `[rows, Q]`; -inf for rows that do not count."""
        pooled = torch.stack([query.pooled for query in queries]).T
        return self._of_all([part.pooled @ pooled for part in self.parts], len(queries))

    def _all_rows(self, queries: Sequence[CaptionEmbedding]) -> Tensor:
        """Max-mean similarities `[rows, Q]`; -inf for rows that do not count."""
        packed = _packed(queries)
        return self._of_all([part.scores(packed) for part in self.parts], len(queries))

    def _best_rows(self, queries: Sequence[CaptionEmbedding], scores: Tensor, count: int) -> Tensor:
        """As `_all_rows`, for the `count` rows with the highest scores for each query; -inf for the others."""
        result = torch.full_like(scores, -torch.inf)
        best = scores.topk(min(count, len(self)), dim=0).indices.sort(0).values
        bounds = torch.searchsorted(best.T.contiguous(), self._bases.expand(len(queries), -1).contiguous())
        for column, query in enumerate(queries):
            packed, rows = _packed([query]), best[:, column]
            for place, part in enumerate(self.parts):
                first, end = bounds[column, place : place + 2].tolist()
                if first < end:
                    scored = part.scores(packed, rows[first:end] - self._bases[place])
                    result[rows[first:end], column] = scored[:, 0]
        return result

    def _of_all(self, scores: list[Tensor], queries: int) -> Tensor:
        live = zip(scores, self.parts, strict=True)
        kept = [scored.masked_fill(~part.live[:, None], -torch.inf) for scored, part in live]
        return torch.cat([torch.empty(0, queries), *kept])

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Iterator[tuple[Path | str, Frames]]:
        """Compute something of every frame, in memory that does not depend on the number of recordings.

        Args:
            function: maps frames `[n, D]` to `[n, ...]`.

        Yields:
            Each recording, with the results in place of its frames.
        """
        for path, _, part, first, end in self.rows():
            pieces = [function(part.decoded(low, min(low + _DECODED, end))) for low in range(first, end, _DECODED)]
            if pieces:
                yield path, Frames(torch.cat(pieces), part.times[first:end])

    def rows(self) -> Iterator[tuple[Path | str, Tensor, Part, int, int]]:
        """Each recording: its path, its global vector `[D]`, and the part and the range that its frames lie in."""
        for place, row in self._live():
            part = self.parts[place]
            first, end = part.offsets[row : row + 2].tolist()
            yield self._path(place, row), part.pooled[row], part, first, end

    def _live(self) -> Iterator[tuple[int, int]]:
        for place, part in enumerate(self.parts):
            for row in part.live.nonzero()[:, 0].tolist():
                yield place, row

    def _place(self, row: int) -> tuple[int, int]:
        place = int(torch.searchsorted(self._bases, row, right=True)) - 1
        return place, row - int(self._bases[place])

    def _path(self, place: int, row: int) -> Path | str:
        path = self.header.whole(os.fsdecode(self.parts[place].name(row)))
        return Path(path) if self.parts[place].is_file(row) else path


def _packed(queries: Sequence[CaptionEmbedding]) -> Queries:
    lengths = torch.tensor([0, *(len(query.tokens) for query in queries)])
    return Queries(torch.cat([query.tokens for query in queries]), lengths.cumsum(0).int())
