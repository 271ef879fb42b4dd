"""The page of `atk app`, served by this process to tests, and requests to it; and the Chromium that opens it."""

import json
import shutil
import socket
from contextlib import contextmanager

from atk.app.server import launch, upload_folder

PATIENCE = 120.0  # seconds
BROWSERS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


class Served:
    """A page that is being served at `address`, with its folder of `uploads`."""

    def __init__(self, address, uploads):
        self.address = address.rstrip("/")
        self.uploads = uploads
        import httpx  # a dependency of gradio

        self.client = httpx.Client(base_url=self.address, timeout=PATIENCE, trust_env=False)

    def upload(self, name, content):
        """Upload a file and return what a component takes in its place, or the status code if it is refused."""
        response = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        return file_data(response.json()[0]) if response.status_code == 200 else response.status_code

    def call(self, name, *values):
        """What a button does with these values: ("complete", outputs), or ("error", message)."""
        response = self.client.post(f"/gradio_api/call/{name}", json={"data": list(values)})
        if response.status_code != 200:
            return "error", response.text
        stream = self.client.get(f"/gradio_api/call/{name}/{response.json()['event_id']}").text
        event, data = stream.strip().split("\n\n")[-1].split("\n", 1)
        return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def file_data(path):
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def served(**contents):
    """Serve a page with these `atk.app.page.Contents` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with upload_folder() as uploads:
        from atk.app.page import Contents, build_page

        page = build_page(Contents(**contents))
        try:
            yield Served(launch(page, uploads, "127.0.0.1", port), uploads)
        finally:
            page.close(verbose=False)


def find_browser():
    """The path of a Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
