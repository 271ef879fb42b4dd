"""Installing where there is no compiler, running where packages are missing, and what the library then says."""

import inspect
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
def test_the_build_goes_on_without_a_working_compiler_and_says_why(tmp_path, compiler):
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path / "tmp"]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"CXX": compiler}, check=True, capture_output=True)
    assert not list(tmp_path.rglob("*.so"))
    assert (tmp_path / "atk" / "_build_error.txt").read_text().strip()


def test_a_missing_extension_is_explained_and_auto_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp, "_C", None)
    monkeypatch.setattr(cpp, "_IMPORT_ERROR", "cannot import name '_C'", raising=False)
    monkeypatch.setattr(cpp, "_BUILD_ERROR", tmp_path / "_build_error.txt")
    assert "cannot be imported" in atk.backends()["cpu float32"]["cpp"]
    (tmp_path / "_build_error.txt").write_text("no C++ compiler: CXX=/no/such/compiler does not run\n")
    row = atk.backends()["cpu float32"]
    assert row["auto"] == "reference" and "no C++ compiler" in row["cpp"] and "install a C++17 compiler" in row["cpp"]
    audio, text = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert atk.max_mean_similarity(audio, text).shape == (2, 2)
    with pytest.raises(atk.BackendError, match=r"no C\+\+ compiler"):
        atk.max_mean_similarity(audio, text, backend="cpp")


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
    atk.max_mean_similarity(audio, text, backend={refused!r})
except atk.BackendError as error:
    print(row["auto"], error)
"""
PACKAGES = "triton torchaudio transformers tokenizers safetensors soundfile sklearn schedulefree jsonargparse yaml"


@pytest.mark.parametrize(
    ("missing", "refused", "auto", "advice"),
    [
        (f"{PACKAGES} tensorboard tqdm matplotlib", "triton", ("cpp", "reference"), "pip install"),
        ("atk._C", "cpp", ("reference",), "install a C++17 compiler"),
    ],
    ids=["only torch and numpy", "no extension"],
)
def test_the_ops_run_where_packages_are_missing(missing, refused, auto, advice):
    code = OPS.format(missing=missing.split(), refused=refused)
    environment = {name: value for name, value in os.environ.items() if name not in ("ATK_BACKEND", "TRITON_INTERPRET")}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(auto) and advice in result.stdout


def test_the_public_names_and_keywords_are_frozen():
    assert set(atk.__all__) == {
        "BackendError",
        "aligned_info_nce",
        "backends",
        "cross_attention_difference",
        "info_nce",
        "max_mean_similarity",
        "max_mean_similarity_pairs",
        "max_mean_similarity_varlen",
        "nn",
        "pairwise_logsumexp",
    }
    parameters = inspect.signature(atk.cross_attention_difference).parameters
    assert " ".join(parameters) == "source q k v out_weight out_bias key_mask num_heads backend"
    assert [name for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY] == ["num_heads", "backend"]
    assert " ".join(inspect.signature(atk.nn.CrossAttentionDifference).parameters) == "dim num_heads bias backend"
    for block in (atk.nn.CrossAttentionDifference, atk.nn.SubtractionDifference):
        assert " ".join(inspect.signature(block.forward).parameters) == "self input reference reference_mask"
