"""Put an import in the place of an earlier one, so that no crash leaves a mixture of the two for others to read."""

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from atk.data.captions import UNFINISHED_IMPORT
from atk.data.published.tree import REPORT

_STAGED = f"{UNFINISHED_IMPORT}-new"


@contextmanager
def staging_folder(out: Path) -> Generator[Path, None, None]:
    """An empty folder for the files of an import, in `out` or, if that does not exist, beside it."""
    folder = out / _STAGED if out.is_dir() else out.with_name(f".{out.name}{_STAGED}")
    shutil.rmtree(folder, ignore_errors=True)  # of an import that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def files_in(folder: Path) -> list[str]:
    """The names of the files that an import has written to a folder, from its report.

    Raises:
        OSError, ValueError, TypeError, LookupError: there is no such report.
    """
    files = [str(name) for name in json.loads((folder / REPORT).read_text(encoding="utf-8"))["files"]]
    return [name for name in files if ".." not in Path(name).parts and not Path(name).is_absolute()]


def has_other_files(out: Path) -> bool:
    """Whether `out` is a file, or has files besides those of an import that was killed."""
    return out.exists() and (not out.is_dir() or any(path.name != _STAGED for path in out.iterdir()))


def put_in_place(folder: Path, out: Path, earlier: Sequence[str]) -> None:
    """Move the files of an import to `out`, in place of those of an earlier one; other files stay.

    Args:
        folder: staging folder with the files of the import.
        out: folder to move them to.
        earlier: names of the files that an earlier import wrote there.

    Raises:
        ValueError: another file has the name of a new one.
    """
    foreign = [name for name in files_in(folder) if name not in earlier and (out / name).exists()]
    if foreign:
        raise ValueError(f"out: {out / foreign[0]} exists, and no earlier import wrote it; choose another folder")
    if out.exists():
        folder.rename(out / UNFINISHED_IMPORT)  # from here on, nobody reads the folder before it is complete
        finish_import(out)
    else:
        folder.rename(out)


def finish_import(out: Path) -> None:
    """Move the files of an import from the folder of an unfinished import to `out`, if there is one."""
    folder = out / UNFINISHED_IMPORT
    if (folder / REPORT).is_file():
        files = files_in(folder)
        old = files_in(out) if (out / REPORT).is_file() else []
        for name in old:
            if name not in files:
                (out / name).unlink(missing_ok=True)
        for name in files:
            (out / name).parent.mkdir(exist_ok=True)
            if (folder / name).is_file():
                (folder / name).replace(out / name)
        (folder / REPORT).replace(out / REPORT)
    if folder.is_dir():
        shutil.rmtree(folder)
