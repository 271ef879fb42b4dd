"""What the page searches: the index of a folder, and one for each of the last files that were dropped into it."""

import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from atk.data import audio_info
from atk.eval.embed import EmbeddingModel
from atk.eval.index import Index
from atk.eval.index_build import build_index

LONGEST_UPLOAD = 600.0  # seconds; the page waits while a file is encoded
_KEPT_UPLOADS = 4


class Origin(NamedTuple):
    """Where a model comes from: `source` and `tokenizer` as in `atk.load`, and the length of its windows."""

    source: str
    tokenizer: str | None
    clip_seconds: float


def index_folder(
    model: EmbeddingModel, origin: Origin, folder: str | Path, out: Path, progress: str | None = None
) -> Index:
    """Build an index of a folder, or of a single file, and open it.

    Raises:
        FileNotFoundError, ValueError, AudioError, OSError: as for `build_index`.
    """
    build_index(
        model,
        folder,
        out,
        source=origin.source,
        tokenizer=origin.tokenizer,
        clip_seconds=origin.clip_seconds,
        on_error="raise" if Path(folder).is_file() else "skip",
        progress=progress,
    )
    index = Index.open(out)
    index.use(model)
    return index


class Library:
    """The recordings that can be searched.

    Args:
        model: embeds queries and dropped files.
        origin: where the model comes from.
        folder: index of the recordings of a folder; None = only dropped files can be searched.
    """

    def __init__(self, model: EmbeddingModel, origin: Origin, folder: Index | None):
        self.model = model
        self.origin = origin
        self.folder = folder
        self._uploads: OrderedDict[str, tuple[tempfile.TemporaryDirectory[str], Index]] = OrderedDict()

    def index(self, upload: str | None) -> Index:
        """The index of an uploaded file, which is encoded at its first use; that of the folder for None.

        Raises:
            ValueError: there is no folder, or the file is too long.
            AudioError: the file cannot be used.
        """
        if upload is None:
            if self.folder is None:
                raise ValueError("there is no folder to search in: drop a file, or start atk app with --data")
            return self.folder
        if upload not in self._uploads:
            self._uploads[upload] = self._encoded(upload)
            while len(self._uploads) > _KEPT_UPLOADS:
                _, (place, _) = self._uploads.popitem(last=False)
                place.cleanup()
        self._uploads.move_to_end(upload)
        return self._uploads[upload][1]

    def _encoded(self, upload: str) -> tuple[tempfile.TemporaryDirectory[str], Index]:
        check_length(upload)
        place = tempfile.TemporaryDirectory(prefix="atk-upload-")
        try:
            return place, index_folder(self.model, self.origin, upload, Path(place.name))
        except BaseException:
            place.cleanup()
            raise

    def close(self) -> None:
        """Delete the indexes of uploaded files."""
        for place, _ in self._uploads.values():
            place.cleanup()
        self._uploads.clear()


def check_length(upload: str | Path) -> None:
    """Refuse a file that takes too long to encode while somebody waits.

    Raises:
        ValueError: it is longer than `LONGEST_UPLOAD`.
        AudioError: it cannot be used.
    """
    seconds = audio_info(upload).seconds
    if seconds > LONGEST_UPLOAD:
        raise ValueError(
            f"{Path(upload).name}: files may last {LONGEST_UPLOAD:g} s at most here, got {seconds:.0f} s; atk search "
            "and atk caption take longer ones"
        )
