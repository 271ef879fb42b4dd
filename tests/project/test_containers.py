"""The Dockerfile and the conda recipe name what exists and what the package requires. Neither is built here."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / ".ci" / "Dockerfile").read_text()


def copied():
    """The paths that are copied from the repository."""
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        yield from line.split()[:-1]


def test_the_dockerfile_copies_all_that_the_build_reads():
    assert all((ROOT / path).exists() for path in copied())
    setup = ast.parse((ROOT / "setup.py").read_text())
    read = {node.value for node in ast.walk(setup) if isinstance(node, ast.Constant) and node.value == "csrc"}
    links = {path.resolve().relative_to(ROOT).as_posix() for path in (ROOT / "atk").iterdir() if path.is_symlink()}
    assert read | links | {"atk", "README.md", "LICENSE"} <= set(copied())
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not set(ignored) & set(copied())
    stages = set(re.findall(r" AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert {"cpu", "cuda"} <= stages
    assert set(re.findall(r"^FROM (\w+) AS", DOCKERFILE, re.MULTILINE)) <= stages


def test_the_recipe_is_that_of_the_package():
    yaml = pytest.importorskip("yaml")
    tomllib = pytest.importorskip("tomllib")
    recipe = yaml.safe_load((ROOT / ".ci" / "conda" / "recipe.yaml").read_text())
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, run = pyproject["project"], recipe["requirements"]["run"]
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "atk" / "__init__.py").read_text(), re.MULTILINE)[1]
    assert recipe["context"]["version"] == version
    assert recipe["about"]["license"] == project["license"] and (ROOT / recipe["about"]["license_file"]).is_file()
    assert recipe["about"]["summary"] == project["description"]
    names = {"torch": "pytorch"}
    wanted = [f"python{project['requires-python']}", *project["dependencies"]]
    split = [re.fullmatch(r"(\w+)(.+)", requirement).groups() for requirement in wanted]
    assert run == [f"{names.get(name, name)} {bounds}" for name, bounds in split]
    built = {entry.split()[0] for entry in recipe["requirements"]["host"]} - {"python", "pip"}
    names = {"ninja": "python-ninja"}
    needed = {re.match(r"\w+", requirement)[0] for requirement in pyproject["build-system"]["requires"]}
    assert built == {names.get(name, name) for name in needed}
    ((command, target),) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [f"{command} = {target}"]
