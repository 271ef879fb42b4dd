"""The user's cache folder, and files that are replaced in one step."""

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$ATK_CACHE`; without it, `atk` in `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        OSError: none of them is known, as in a container whose user has no home directory.
    """
    if chosen := os.environ.get("ATK_CACHE"):
        return Path(chosen)
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not folder.is_absolute():  # relative ones do not count
        try:
            folder = Path("~/.cache").expanduser()
        except RuntimeError:
            raise OSError("the home directory is unknown; set ATK_CACHE to a folder for caches") from None
    return folder / "atk"


def replace_file(path: Path, content: bytes) -> None:
    """Write a file, in one step for its readers, and create its folder; other users can read it.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=".atk-", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.close()
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
