"""Processes that start in milliseconds: forks of a server that has imported the library."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PATIENCE = 120  # seconds within which a job must end


@cache
def _server() -> subprocess.Popen:
    """The server of this test session; it ends when its stdin is closed, at the latest at the end of the session."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", "from support.fork_server import serve; serve()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes)


@cache
def _outputs() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="atk-jobs-")


def _ask(**request):
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


class Job:
    """One or more processes that call the same function."""

    def __init__(self, function: str, *arguments: object, environments: tuple[dict[str, str], ...] = ({},)):
        folder = tempfile.mkdtemp(dir=_outputs().name)
        self._files = [Path(folder, str(rank)) for rank in range(len(environments))]
        self._codes = {}
        self.pids = [
            _ask(function=function, arguments=arguments, environment=environment, output=str(file))
            for environment, file in zip(environments, self._files, strict=True)
        ]

    @property
    def output(self) -> str:
        """What all processes have written to stdout and stderr."""
        return "".join(file.read_text(errors="replace") for file in self._files if file.exists())

    def poll(self) -> int | None:
        """None while any process runs, then the exit code of one that failed, or 0."""
        for pid in self.pids:
            if self._codes.get(pid) is None:
                self._codes[pid] = _ask(wait=pid)
        codes = self._codes.values()
        return None if None in codes else next(filter(None, codes), 0)

    def kill(self) -> None:
        """SIGKILL all processes that still run."""
        self.poll()
        for pid, code in self._codes.items():
            if code is None:
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit code of the job; fail the test if the job does not end in time."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"still running after {seconds} s: {self.output}")
            time.sleep(0.01)
        return code


def start_ranks(ranks: int, function: str, *arguments: object) -> Job:
    """A job of `ranks` processes that find each other as those started by torchrun do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environments = [
        {name: str(value) for name, value in (common | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        for rank in range(ranks)
    ]
    return Job(function, *arguments, environments=tuple(environments))
