"""A folder for an exported model, and its upload to the Hugging Face hub."""

from pathlib import Path

from atk.extras import optional_imports


def check_folder(out: str | Path) -> Path:
    """The folder to export to, after a check that nothing in it would be mixed with the model.

    Raises:
        ValueError: `out` is a file, or a folder that is not empty.
    """
    folder = Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"out: {folder} exists and is not an empty folder; choose another name or remove it")
    return folder


def upload(folder: Path, repository: str) -> str:
    """Upload a folder to a hub repository, which is created if needed. Returns its address.

    Raises:
        ValueError: the hub refuses the name, the user, or the upload.
    """
    with optional_imports:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    hub = HfApi()
    try:
        address = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder)
    except (HFValidationError, HfHubHTTPError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"push: cannot upload to {repository!r}: {reason}") from error
    return str(address)
