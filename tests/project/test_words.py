"""One standard name for one thing: words that hide what they stand for are not used as identifiers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BANNED = {
    "found", "home", "homes", "kind", "meet", "most", "number", "numbers", "own", "room", "sides", "skip", "take_part",
    "together", "weights_to_use",
}  # fmt: skip
ALLOWED = {
    ("atk/train/contrastive.py", "kind"): "loss.kind is a key of the configuration",
    ("atk/train/semisupervised_config.py", "kind"): "mapper.kind is a key of the configuration",
    ("benchmarks/harness/report.py", "kind"): "a key of the saved results",
}
PYTHON_FOLDERS = ("atk", "kernels", "benchmarks", "examples", "tests")
NOT_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)


def defined_names(node: ast.AST) -> Iterator[str]:
    """Names that a node defines: variables, parameters, attributes, functions, classes, imports."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.attr
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.ImportFrom | ast.Import):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name


def python_identifiers(folder: str) -> Iterator[tuple[str, int, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield from ((str(path.relative_to(ROOT)), node.lineno, name) for name in defined_names(node))


def cpp_identifiers() -> Iterator[tuple[str, int, str]]:
    """Words outside comments and strings, except after `.` or `->`: members of other libraries may have any name."""
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".cu")):
        code = NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), path.read_text())
        for line, text in enumerate(code.splitlines(), 1):
            words = re.findall(r"(?<![\w.])(?<!->)[A-Za-z_]\w*", text)
            yield from ((str(path.relative_to(ROOT)), line, word) for word in words)


@pytest.mark.parametrize("folder", [*PYTHON_FOLDERS, "csrc"])
def test_identifiers_say_what_they_stand_for(folder):
    identifiers = cpp_identifiers() if folder == "csrc" else python_identifiers(folder)
    banned = {(path, line, name) for path, line, name in identifiers if name in BANNED and (path, name) not in ALLOWED}
    places = [f"{path}:{line}: {name}" for path, line, name in sorted(banned)]
    assert not places, "\n".join(["", *places])
