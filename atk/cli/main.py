"""Entry point of the `atk` command: runs a subcommand and reports errors in one line."""

import contextlib
import os
import sys
import warnings

import torch

import atk
from atk.cli.exit_codes import FAILURE, INTERRUPTED, MISTAKE
from atk.cli.output import accept_all_names
from atk.extras import missing_package
from atk.ops.backend import BackendError

_PYTHON_FORMAT = warnings.formatwarning


def main(argv: list[str] | None = None) -> None:
    """Run the `atk` command; a user's mistake ends with one line on stderr and exit code 2.

    Args:
        argv: the command line without the program's name; None takes `sys.argv`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    prog = "atk"
    warnings.formatwarning = _format_warning
    accept_all_names()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as ours are; before transformers is imported
    try:
        if not _runs_without_parser(argv):
            from atk.cli.commands import parse

            name, run, arguments = parse(argv)
            prog = f"atk {name}"
            run(arguments)
    except BrokenPipeError:
        sys.exit(FAILURE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        code = _report(prog, error)
        if code is None:
            raise
        sys.exit(code)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One line for a warning about the user's data; Python's format for other warnings."""
    if category.__name__ == "DataWarning":
        return f"{message}\n"
    return _PYTHON_FORMAT(message, category, filename, lineno, line)


def _runs_without_parser(argv: list[str]) -> bool:
    """Run the commands that must work where only torch and numpy are installed."""
    if argv == ["--version"]:
        print(f"atk {atk.__version__}")
        return True
    if argv in (["doctor"], ["doctor", "--check"]):
        from atk.cli import doctor

        doctor.run(check=len(argv) > 1)
        return True
    return False


def _report(prog: str, error: Exception) -> int | None:
    """Write an expected error in one line on stderr and return its exit code; None for a bug."""
    code = _exit_code(error)
    if code is not None:
        message = missing_package(error) if isinstance(error, ImportError) else None
        sys.stderr.write(f"{prog}: {message or ' '.join(str(error).split())}\n")
    return code


def _exit_code(error: Exception) -> int | None:
    """The exit code of an expected error; None for a bug, which deserves a traceback."""
    if isinstance(error, torch.OutOfMemoryError):
        return FAILURE
    if isinstance(error, (ValueError, OSError, ImportError, BackendError)):
        return MISTAKE
    # A package that is not installed cannot have raised the error.
    with contextlib.suppress(ImportError):
        from atk.train.ranks import RankLost
        from atk.train.trainer import Interrupted, TrainingError

        if isinstance(error, Interrupted):
            return INTERRUPTED
        if isinstance(error, (TrainingError, RankLost)):
            return FAILURE
    with contextlib.suppress(ImportError):
        from safetensors import SafetensorError

        if isinstance(error, SafetensorError):
            return MISTAKE
    with contextlib.suppress(ImportError):
        from yaml import YAMLError

        if isinstance(error, YAMLError):
            return MISTAKE
    return None
