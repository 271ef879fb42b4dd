"""Serve the page: on one address, with uploads in one folder that is limited in size."""

import os
import socket
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from atk.extras import optional_imports

UPLOAD_BYTES = 50_000_000  # of one file
_UPLOADS_BYTES = 500_000_000  # of all files
_FILE_ROUTES = ("/file=", "/file/", "/proxy=")


@contextmanager
def upload_folder() -> Generator[Path, None, None]:
    """A folder for uploads, which must exist before the page is built; deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="atk-app-") as name:
        folder = Path(name).resolve()
        # Gradio reads its settings from the environment; it would keep statistics of the last 10,000 queries.
        settings = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_MAX_EVENTS": "10"}
        before = {key: os.environ.get(key) for key in settings}
        os.environ.update(settings)
        try:
            yield folder
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def delete_oldest(folder: Path, limit: int = _UPLOADS_BYTES) -> None:
    """Delete the oldest files below a folder until the others have at most `limit` bytes."""
    files = [(path.stat(), path) for path in folder.rglob("*") if path.is_file()]
    total = sum(status.st_size for status, _ in files)
    for status, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= status.st_size


class UploadsOnly:
    """ASGI middleware that refuses to serve any file outside of the folder of uploads.

    Gradio serves more: files of its own caches, and what public URLs return.

    Args:
        app: the application.
        folder: the folder of uploads.
    """

    def __init__(self, app: Callable[..., Any], folder: Path):
        self.app = app
        self.folder = folder

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it with 403."""
        if scope["type"] == "http" and not self.allows(scope["path"]):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"not a file of this page"})
            return
        await self.app(scope, receive, send)

    def allows(self, path: str) -> bool:
        """Whether the path of a request, decoded, is not that of a file, or that of an uploaded one."""
        for route in _FILE_ROUTES:
            if route in path:
                name = path.split(route, 1)[1]
                try:
                    file = Path(name).resolve()
                except (OSError, ValueError, RuntimeError):
                    return False
                return route == "/file=" and name.startswith("/") and file.is_relative_to(self.folder)
        return True


def check_port(host: str, port: int) -> None:
    """Check that a server can listen.

    Raises:
        ValueError: the port is out of range or in use, or the host is none of this machine.
    """
    if not 0 < port < 65536:
        raise ValueError(f"port must be in 1..65535, got {port}")
    try:
        family, socket_type, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket_type) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"port: {host}:{port} cannot be used ({reason}); choose another host or port") from None


def launch(page: Any, folder: Path, host: str, port: int) -> str:
    """Start to serve the page, in the background, and return its address.

    Args:
        page: what `atk.app.page.build_page` returned.
        folder: what `upload_folder` returned.
        host, port: where to listen.

    Raises:
        ValueError: as for `check_port`.
    """
    with optional_imports:
        import gradio as gr
        from starlette.middleware import Middleware

    check_port(host, port)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        inbrowser=False,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[],
        max_file_size=UPLOAD_BYTES,
        state_session_capacity=100,
        app_kwargs={"middleware": [Middleware(UploadsOnly, folder=folder)], "docs_url": None, "redoc_url": None},
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from a server
    )
    return address
