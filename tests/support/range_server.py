"""A web server on this machine that serves the files of a folder, in ranges, and counts what it sends."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer(ThreadingHTTPServer):
    """Serves the files of `folder`.

    Attributes:
        requests: (method, first byte, number of bytes) of each request for content.
        failures: number of requests still to be answered with an error.
        ranges: whether ranges are honored; else every answer is the whole file.
        stamp: name of the header that states when the file changed.
    """

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests = []
        self.failures = 0
        self.ranges = True
        self.stamp = "ETag"

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def sent(self):
        """Number of bytes of content sent so far."""
        return sum(count for method, _, count in self.requests if method == "GET")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        server = self.server
        file = server.folder / self.path.lstrip("/")
        if server.failures:
            server.failures -= 1
            self.send_error(503)
            return
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        size, start = len(content), 0
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if server.ranges else None
        self.send_response(206 if match else 200)
        if match:
            start, end = int(match[1]), min(int(match[2]) + 1, size)
            content = content[start:end]
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        server.requests.append((self.command, start, len(content)))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header(server.stamp, f'"{file.stat().st_mtime_ns}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def range_server(folder):
    server = RangeServer(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
