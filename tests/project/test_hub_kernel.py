"""The repository for the Hugging Face hub that .ci/hub_kernel.py writes, loaded by the `kernels` library."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.hub_cases import losses
from support.integrations import our_ops_run

import atk

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / ".ci" / "hub_kernel.py"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "audio-text-kernels"
    for name in ("metadata.json", "outdated.py"):  # as an earlier run may have written them
        (out / "build" / "torch-cuda").mkdir(parents=True, exist_ok=True)
        (out / "build" / "torch-cuda" / name).touch()
    subprocess.run([sys.executable, SCRIPT, out], check=True, capture_output=True)
    return out


def metadata(repository, backend):
    return json.loads((repository / "build" / f"torch-{backend}" / "metadata.json").read_text())


def test_only_torch_and_triton_are_imported(repository):
    imported = set()
    files = list(repository.rglob("*.py"))
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "triton"}
    assert len(files) > 60 and not [path for path in files if path.name in ("tune.py", "compile.py", "outdated.py")]


def test_the_card_names_every_function(repository):
    card = (repository / "README.md").read_text()
    assert all(f"`{name}" in card for name in set(atk.__all__) - {"nn", "load", "BackendError"})
    assert f"audio-text-kernels {atk.__version__}." in card and (repository / "LICENSE").is_file()


def test_folders_with_other_content_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    result = subprocess.run([sys.executable, SCRIPT, tmp_path], check=False, capture_output=True, text=True)
    assert result.returncode == 1 and "is not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_digests_and_identifiers_are_those_of_the_files(repository):
    rust = pytest.importorskip("kernels._rust")
    for backend in ("cpu", "cuda"):
        folder = repository / "build" / f"torch-{backend}"
        files = rust.Digest.hash_variant(rust.DigestAlgorithm.SHA256, folder).files
        files.pop("metadata.json", None)
        assert files == metadata(repository, backend)["digest"]["files"]
        read = rust.Metadata.read_from_file(folder / "metadata.json")
        assert str(read.name) == "audio-text-kernels" and read.version == 0 and read.python_depends == []
    assert metadata(repository, "cpu")["id"].startswith("_audio_text_kernels_cpu_")


def test_the_loaded_ops_agree_with_the_library(repository):
    kernels = pytest.importorskip("kernels")
    loaded = kernels.get_local_kernel(repository, backend="cpu")
    assert loaded.__name__ == metadata(repository, "cpu")["id"]
    assert set(loaded.__all__) == set(atk.__all__) - {"nn", "load"}
    with our_ops_run(False):  # those of the installed library
        losses(loaded, "auto")
    for backend in ("auto", "chunked"):
        torch.testing.assert_close(losses(loaded, backend), losses(atk, backend), rtol=1e-4, atol=1e-5)
    row = loaded.backends()["cpu float32"]
    assert row["auto"] == "chunked" and "cannot be imported" in row["cpp"]
    for_gpus = kernels.get_local_kernel(repository / "build" / "torch-cuda")  # beside the other
    torch.testing.assert_close(losses(for_gpus, "auto"), losses(loaded, "auto"))
    assert {"max_mean_forward", "info_nce_backward"} <= set(dir(getattr(torch.ops, loaded.__name__)))


ALONE = """
import sys
sys.modules["atk"] = None  # importing it raises ImportError
import torch
from pathlib import Path
from kernels import get_local_kernel
sys.path.append(sys.argv[2])
from support.hub_cases import losses
loaded = get_local_kernel(Path(sys.argv[1]), backend="cpu")
torch.testing.assert_close(losses(loaded, "triton"), losses(loaded, "reference"), rtol=1e-3, atol=1e-4)
print(sorted(name for name in sys.modules if name.startswith("atk.")))
"""


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_triton_kernels_run_without_the_library(repository, tmp_path):
    pytest.importorskip("kernels")
    command = [sys.executable, "-c", ALONE, repository, ROOT / "tests"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr
