"""docs/errors.md lists the errors that a user can run into, in the words of the code."""

import ast
import re
from pathlib import Path

import pytest

from atk.cli import main as command

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
# Modules whose every error belongs on the page; errors about arguments of functions are left to the docstrings.
LISTED = [
    *("data/audio", "data/captions", "data/codecs", "data/containers", "data/ffmpeg", "data/listing"),
    *("data/references", "data/samples", "data/shards", "data/side_files", "data/tables", "data/unlabeled", "device"),
    *(
        f"data/published/{name}"
        for name in ("audioset", "clips", "clotho", "ecals", "exclusions", "importing", "music")
    ),
    *(f"data/published/{name}" for name in ("timed", "tree", "wavcaps")),
    *("data/hub", "data/layouts", "data/metadata", "data/pairs", "data/remote", "data/sets", "data/texts"),
    *("eval/figures", "eval/outputs", "eval/protocols", "eval/search", "models/saved", "models/text_pretrained"),
    *("soundscapes/class_phrases", "soundscapes/materials", "soundscapes/recordings"),
    *("train/checkpoint", "train/contrastive", "train/ranks", "train/run"),
    *("cli/caption_commands", "cli/commands", "cli/model_arguments", "cli/model_commands", "cli/output"),
    *("eval/publish", "eval/sources", "eval/tables", "models/export", "models/htsat", "models/published"),
]
EXPECTED = ("ValueError", "OSError", "FileNotFoundError", "AudioError", "Unusable", "ForeignTableError", "RankLost")


def text(node):
    """A string with `…` in place of the values that it is filled with; None for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def raised(path):
    """(line, type, message) of the errors that a module raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                if (message := text(argument)) is not None:
                    yield node.lineno, ast.unparse(node.exc.func), message


def listed():
    cells = re.findall(r"^\| (`.*`) \| ", PAGE, re.MULTILINE)
    return {message for cell in cells for message in re.findall("`([^`]+)`", cell)}


@pytest.mark.parametrize("module", LISTED)
def test_errors_of_the_code_are_on_the_page(module):
    path = ROOT / "atk" / f"{module}.py"
    errors = [
        (line, message)
        for line, error, message in raised(path)
        if error in EXPECTED and not re.fullmatch("(…|line|[: ;])*", message)  # other functions supply the words
    ]
    assert errors
    missing = [f"{path.name}:{line}: {message}" for line, message in errors if message not in listed()]
    assert not missing, "\n".join(missing)


def test_errors_of_the_page_are_in_the_code():
    messages = {message for path in (ROOT / "atk").rglob("*.py") for _, _, message in raised(path)}
    assert len(listed()) > 70
    assert listed() <= messages, "\n".join(sorted(listed() - messages))


@pytest.mark.parametrize("error", [ValueError, OSError, FileNotFoundError, ImportError])
def test_expected_errors_end_in_one_line_and_code_2(error, capsys):
    assert command._report("atk train", error("a\nb  c")) == 2
    assert capsys.readouterr().err == "atk train: a b c\n"
    assert command._report("atk train", TypeError("a bug")) is None
