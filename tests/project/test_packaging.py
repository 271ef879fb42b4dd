"""Installing without a compiler, running without optional packages, and the messages in both cases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import atk
from atk.kernels import cpp

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_the_build_continues_without_a_working_compiler_and_records_why(tmp_path, compiler):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path / "tmp"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"CXX": compiler}, check=True, capture_output=True)
    assert not list(tmp_path.rglob("*.so"))
    assert (tmp_path / "atk" / "_build_error.txt").read_text().strip()


def test_a_missing_extension_is_explained_and_auto_falls_back(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp, "_C", None)
    monkeypatch.setattr(cpp, "_IMPORT_ERROR", "No module named 'atk._C'")
    monkeypatch.setattr(cpp, "_BUILD_ERROR", tmp_path / "_build_error.txt")
    assert "cannot be imported" in atk.backends()["cpu float32"]["cpp"]
    (tmp_path / "_build_error.txt").write_text("compiler not found: CXX=/no/such/compiler\n")
    row = atk.backends()["cpu float32"]
    assert row["auto"] == "chunked"
    assert "compiler not found" in row["cpp"] and "install a C++17 compiler" in row["cpp"]
    audio, text = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert atk.max_mean_similarity(audio, text).shape == (2, 2)
    with pytest.raises(atk.BackendError, match="compiler not found"):
        atk.max_mean_similarity(audio, text, backend="cpp")


def test_importing_atk_loads_neither_triton_nor_the_compiler():
    code = "import sys, torch, atk; print({'triton', 'torch._dynamo'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "set()\n"


OPS = """
import sys
sys.modules.update(dict.fromkeys({missing}))  # importing any of them raises ImportError
import torch, atk
audio, text = torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 4, 8, requires_grad=True)
vectors, weight = (audio.mean(1), text.mean(1)), torch.randn(8, 8)
loss = atk.aligned_info_nce(audio, text, 5.0) + atk.info_nce(*vectors, 5.0)
loss = loss + atk.nn.AlignedContrastiveLoss()(*vectors, audio, text)
loss = loss + atk.cross_attention_difference(audio, audio, text, text, weight, num_heads=2).sum()
(loss + atk.max_mean_similarity_pairs(audio, text).sum()).backward()
assert audio.grad.isfinite().all() and text.grad.abs().sum() > 0
row = atk.backends()["cpu float32"]
try:
    atk.max_mean_similarity(audio, text, backend={unavailable!r})
except atk.BackendError as error:
    print(row["auto"], error)
"""
PACKAGES = "triton torchaudio transformers tokenizers safetensors soundfile sklearn schedulefree jsonargparse yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "unavailable", "auto", "advice"),
    [
        (f"{PACKAGES} tensorboard tqdm matplotlib", "triton", ("cpp", "chunked"), "pip install"),
        ("atk._C", "cpp", ("chunked",), "install a C++17 compiler"),
    ],
    ids=["only torch and numpy", "no extension"],
)
def test_the_ops_run_where_packages_are_missing(missing, unavailable, auto, advice):
    code = OPS.format(missing=missing.split(), unavailable=unavailable)
    environment = {name: value for name, value in os.environ.items() if name not in ("ATK_BACKEND", "TRITON_INTERPRET")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(auto) and advice in result.stdout
