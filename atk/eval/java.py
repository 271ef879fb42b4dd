"""Run the Java programs of pycocoevalcap, with a time limit."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Timer

_GET_JAVA = "apt-get install default-jre-headless"
# Programs write numbers as the user's language does, and cannot read their own decimal commas.
_ENGLISH = [f"-Duser.{name}" for name in ("language=en", "country=US", "language.format=en", "country.format=US")]


class UnavailableError(Exception):
    """A metric or tokenizer cannot be run. The message says why."""


def find_jar(package: str, name: str, command: str) -> Path:
    """Find a jar in a package of pycocoevalcap.

    Args:
        package: package of pycocoevalcap.
        name: path of the jar in the package.
        command: command that installs the jar, for the error message.

    Raises:
        UnavailableError: Java or the jar is missing.
    """
    if shutil.which("java") is None:
        raise UnavailableError(f"java is not on the PATH; {_GET_JAVA}")
    path = package_folder(package) / name
    if not path.is_file():
        raise UnavailableError(f"{path} is missing; {command}")
    return path


def package_folder(package: str) -> Path:
    """The folder of a package of pycocoevalcap."""
    spec = importlib.util.find_spec(f"pycocoevalcap.{package}")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


@contextmanager
def run_java(arguments: list[str], time_limit: float) -> Generator[subprocess.Popen[str], None, None]:
    """Run Java with text pipes; the process and its children are killed on exit or after `time_limit` seconds.

    Errors in the body become UnavailableError, with the last line that Java wrote to stderr or the error itself.
    """
    command = ["java", "-Dfile.encoding=UTF-8", *_ENGLISH, *arguments]
    # Options in this variable override those on the command line.
    environment = os.environ | {"_JAVA_OPTIONS": " ".join([os.environ.get("_JAVA_OPTIONS", ""), *_ENGLISH]).strip()}
    expired = Event()

    def expire() -> None:
        expired.set()
        _kill(process)

    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            raise UnavailableError(f"java failed: {error}") from error
        timer = Timer(time_limit, expire)
        timer.daemon = True
        timer.start()
        try:
            yield process
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.seek(0)
            # Indented lines belong to a stack trace; the line before it says more.
            lines = [line.strip() for line in log.read().split("\n") if line.strip() and not line[0].isspace()]
            lines = [line for line in lines if not line.startswith("Picked up ")]  # options from the environment
            reason = lines[-1] if lines else str(error)
            limit = f"stopped after {time_limit:g} s"
            raise UnavailableError(limit if expired.is_set() else f"java failed: {reason}") from error
        finally:
            timer.cancel()
            _kill(process)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            process.wait()


def finish(process: subprocess.Popen[str], text: str = "") -> str:
    """Send `text` to the process and return its output; raises ValueError if it fails."""
    output, _ = process.communicate(text)
    if process.returncode:
        raise ValueError(f"exit status {process.returncode}")
    return output


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
