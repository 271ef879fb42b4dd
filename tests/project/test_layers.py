"""The layers of the library: imports go down, never up or in a circle; files stay short."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A module imports its own layer and those before it. "atk" stands for what `import atk` gives: ops and nn.
LAYERS = (
    "_C", "extras", "device", "kernels", "ops", "distributed", "nn", "atk", "_torchaudio", "data", "models",
    "integrations", "soundscapes", "eval", "train", "plan", "bench", "recipes", "app", "cli",
)  # fmt: skip
ON_FIRST_USE = ("atk", "atk.eval.embedder")  # atk.load is offered at the top but imports what it needs when called
MAX_LINES = 300


@cache
def modules() -> dict[str, Path]:
    """{dotted name: file} of the library; kernels and bench are symbolic links in atk."""
    files = [path for folder in (ROOT / "atk").iterdir() if folder.is_dir() for path in folder.rglob("*.py")]
    files += (ROOT / "atk").glob("*.py")
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(files)}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def layer(module: str) -> int:
    parts = module.split(".")
    if parts[-1] == "__main__":
        return LAYERS.index("cli") if len(parts) == 2 else layer(".".join(parts[:-1]))
    return LAYERS.index(parts[1] if len(parts) > 1 else "atk")


def targets(node: ast.AST, module: str) -> Iterator[str]:
    """Names of the modules of atk that a statement imports, in functions and under TYPE_CHECKING as well."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = modules()[module].parent.relative_to(ROOT).parts
        start = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
        source = (start + (node.module or "")).rstrip(".")
        for alias in node.names:
            name = f"{source}.{alias.name}"
            yield name if name in modules() or name == "atk._C" else source
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        # import_module(f"atk.bench.{op}") counts as an import of the package.
        first = node.args[0].values[0] if isinstance(node.args[0], ast.JoinedStr) else node.args[0]
        if isinstance(first, ast.Constant):
            yield first.value.rstrip(".")


@cache
def imports() -> list[tuple[str, str, str]]:
    """(module, imported module, file:line) of every import of atk by atk."""
    return [
        (module, target, f"{path.relative_to(ROOT)}:{node.lineno}")
        for module, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        for target in targets(node, module)
        if target.split(".")[0] == "atk" and (module, target) != ON_FIRST_USE
    ]


def test_every_module_belongs_to_a_layer():
    packages = {name.split(".")[1] for name in modules() if "." in name} - {"__main__"}
    assert packages | {"_C", "atk"} == set(LAYERS)
    assert len(list((ROOT / "atk").glob("*.py"))) <= 4, "new modules go into a package, not directly into atk/"


def test_no_import_goes_up():
    assert len(imports()) > 200
    up = [f"{place}: {module} imports {target}" for module, target, place in imports() if layer(target) > layer(module)]
    assert not up, "\n".join(["", *up])


def test_no_imports_form_a_circle():
    arrows = {(module, target): place for module, target, place in imports() if target != module}
    while True:  # drop arrows that no circle can hold: those from a module without importers or to one without imports
        importers, imported = {module for module, _ in arrows}, {target for _, target in arrows}
        kept = {arrow: place for arrow, place in arrows.items() if arrow[0] in imported and arrow[1] in importers}
        if kept == arrows:
            break
        arrows = kept
    circle = [f"{place}: {module} imports {target}" for (module, target), place in arrows.items()]
    assert not circle, "\n".join(["", *circle])


def test_no_file_is_too_long():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.cpp", "*.h", "*.cu"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    assert len(files) > 100
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    too_long = [f"{path}: {lines} lines, at most {MAX_LINES}" for path, lines in lengths.items() if lines > MAX_LINES]
    assert not too_long, "\n".join(["", *too_long])
