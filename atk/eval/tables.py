"""Embeddings of all files of a folder, written as a table of names and vectors."""

import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from atk.data.captions import OnError
from atk.eval.embed import EmbeddingModel, embed_all
from atk.eval.frames import TensorFile
from atk.eval.outputs import check_output, in_unicode
from atk.extras import optional_imports

_NPY = b"\x93NUMPY"
_PARQUET = b"PAR1"


class EmbeddedFolder(NamedTuple):
    """`names` of N files, relative to the folder; their global vectors `[N, D]`, float32 of unit length; and `skipped`:
    (name, reason) of the files that cannot be read."""

    names: list[str]
    vectors: Tensor
    skipped: list[tuple[str, str]]


def embed_folder(
    model: EmbeddingModel,
    folder: str | Path,
    *,
    clip_seconds: float | None = 9.91,
    batch_size: int = 32,
    workers: int = 0,
    on_error: OnError = "skip",
    progress: str | None = None,
) -> EmbeddedFolder:
    """Embed all audio files of a folder. Arguments and errors are those of `atk.eval.search.search_all`."""
    options = {"clip_seconds": clip_seconds, "batch_size": batch_size, "workers": workers, "on_error": on_error}
    skipped: list[tuple[str, str]] = []
    file, names = TensorFile(), []
    for clip, embedding in embed_all(model, folder, skipped, progress=progress, **options):
        file.add(embedding.pooled)
        names.append(clip.file_name)
    return EmbeddedFolder(names, torch.stack(file.mapped()), skipped)


def check_table(out: str | Path) -> None:
    """Check that `write_table` can write `out`, before the work starts.

    Raises:
        ValueError: its suffix is unknown, or it exists and is something else.
        OSError: it cannot be written.
        ImportError: a package is missing.
    """
    suffix = Path(out).suffix.lower()
    if suffix == ".parquet":
        with optional_imports:
            from pyarrow import parquet  # noqa: F401
        check_output(out, _PARQUET, "a Parquet file")
    elif suffix == ".npy":
        check_output(out, _NPY, "a NumPy file")
        check_output(Path(out).with_suffix(".csv"), b"row,file_name\n", "a list of file names")
    else:
        raise ValueError(f"out: must end in .npy or .parquet, got {str(out)!r}")


def write_table(out: Path, embedded: EmbeddedFolder) -> list[Path]:
    """Write names and vectors: as `.parquet`, with columns `file_name` and `vector`; or the vectors as `.npy`, with the
    name of each row in a `.csv` next to it. Returns the files."""
    names = [in_unicode(name) for name in embedded.names]
    vectors = embedded.vectors.numpy()
    files = [out] if out.suffix.lower() == ".parquet" else [out, out.with_suffix(".csv")]
    with TemporaryDirectory(prefix=".atk-", dir=out.parent) as folder:  # existing files stay until all is written
        written = [Path(folder, path.name) for path in files]
        if len(files) == 1:
            import pyarrow as pa
            from pyarrow import parquet

            rows = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
            parquet.write_table(pa.table({"file_name": names, "vector": rows}), written[0])
        else:
            with written[0].open("wb") as file:
                np.save(file, vectors)
            with written[1].open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([["row", "file_name"], *enumerate(names)])
        for path, place in zip(written, files, strict=True):
            path.replace(place)
    return files
