"""Which wheels .ci/wheel.py rejects; `make wheel` builds a real one and tests it in a clean environment."""

import fnmatch
import importlib.util
import os
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = "atk/_C.cpython-311-x86_64-linux-gnu.so"


@pytest.fixture(scope="module")
def ci():
    spec = importlib.util.spec_from_file_location("ci_wheel", ROOT / ".ci" / "wheel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def check(ci, tmp_path):
    def check(*names, binary=b"\x7fELF"):
        wheel = tmp_path / "audio_text_kernels-0.1.0-cp311-cp311-linux_x86_64.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in (*names, "audio_text_kernels-0.1.0.dist-info/METADATA"):
                archive.writestr(name, binary if name == MODULE else b"")
        ci.check_contents(wheel, ci.expected_files())

    return check


def test_a_complete_wheel_passes(ci, check):
    expected = ci.expected_files()
    assert {
        "atk/__init__.py",
        "atk/kernels/cpp.py",
        "atk/models/clap.py",
        "atk/recipes/table_4_1/mask.yaml",
        "atk/py.typed",
    } <= expected
    check(*expected, MODULE)


def test_a_wheel_with_missing_or_unexpected_files_is_rejected(ci, check):
    expected = ci.expected_files()
    with pytest.raises(SystemExit, match=r"missing: atk/kernels/cpp\.py"):
        check(*expected - {"atk/kernels/cpp.py"}, MODULE)
    for unexpected in ("tests/test_wheel.py", "atk/data/list.csv"):
        with pytest.raises(SystemExit, match=f"unexpected: {unexpected}"):
            check(*expected, MODULE, unexpected)
    with pytest.raises(SystemExit, match=r"(?s)unexpected: atk/_build_error\.txt.*one compiled module"):
        check(*expected, "atk/_build_error.txt")


def test_a_module_with_paths_of_the_build_machine_is_rejected(ci, check):
    for folder in (tempfile.gettempdir(), str(ROOT)):
        with pytest.raises(SystemExit, match="the compiled module contains the path"):
            check(*ci.expected_files(), MODULE, binary=f"{folder}/pybind11.h".encode())


def test_the_workflow_builds_wheels_for_every_declared_python():
    pyproject = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    declared = re.findall(r"Python :: 3\.(\d+)", " ".join(pyproject["project"]["classifiers"]))
    settings = pyproject["tool"]["cibuildwheel"]
    built = [minor for minor in range(8, 20) if fnmatch.fnmatch(f"cp3{minor}-manylinux_x86_64", settings["build"])]
    assert built == [int(minor) for minor in declared]
    assert fnmatch.fnmatch("cp314-manylinux_aarch64", settings["build"])
    assert not fnmatch.fnmatch("cp314t-manylinux_x86_64", settings["build"])
    (script,) = re.findall(r"\{project\}/(\S+)", settings["test-command"])
    assert (ROOT / script).is_file()
    workflow = (ROOT / ".github" / "workflows" / "wheels.yml").read_text()
    assert "pypa/cibuildwheel@" in workflow and "id-token: write" in workflow


def test_a_tag_that_is_not_the_version_stops_the_workflow(tmp_path):
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "wheels.yml").read_text())
    (command,) = [step["run"] for step in workflow["jobs"]["sdist"]["steps"] if "refs/tags/v" in step.get("if", "")]
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "audio_text_kernels-1.2.3.tar.gz").touch()
    for tag, passes in (("v1.2.3", True), ("v1.2.4", False)):
        environment = os.environ | {"GITHUB_REF_NAME": tag}
        result = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=False)
        assert (result.returncode == 0) is passes
