"""Runs the ops and losses of an installed wheel in an environment with only torch and numpy.

Each instruction set that this CPU supports is forced in turn, down to the x86-64 baseline.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import atk
from atk.kernels import cpp

OPTIONAL = ("transformers", "torchaudio", "soundfile", "jsonargparse", "PyYAML", "triton", "matplotlib", "pytest")


def main() -> None:
    check_environment()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_instruction_sets(dtype)
    print("atk.max_mean_similarity agrees with the reference under", ", ".join(cpp._C.available_isas()))
    check_ops_and_losses()
    check_missing_extra()


def check_environment() -> None:
    """Exit unless atk comes from the wheel, and there is neither a compiler nor an optional package."""
    if not atk.__file__.startswith(sys.prefix) or shutil.which("c++") or shutil.which("g++"):
        sys.exit(f"not a clean environment: atk comes from {atk.__file__}, C++ compiler: {shutil.which('c++')}")
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    with_torch = " ".join(importlib.metadata.requires("torch") or [])  # torch's CUDA builds install triton
    if present := sorted(name for name in installed.intersection(OPTIONAL) if name not in with_torch):
        sys.exit(f"the base installation must not install {', '.join(present)}")


def check_instruction_sets(dtype: torch.dtype) -> None:
    """Compare the max-mean similarity, forward and backward, with the reference under every instruction set."""
    row = atk.backends()[f"cpu {dtype}".replace("torch.", "")]
    if row["auto"] != "cpp":
        sys.exit(f"the C++ extension does not work: {row}")
    audio, text = torch.randn(5, 40, 64).to(dtype), torch.randn(7, 9, 64).to(dtype)
    results = []
    runs = [("reference", "portable"), *(("cpp", isa) for isa in cpp._C.available_isas())]
    for backend, isa in runs:
        cpp._C.set_isa(isa)
        inputs = audio.clone().requires_grad_(), text.clone().requires_grad_()
        similarity = atk.max_mean_similarity(*inputs, backend=backend)
        results.append((similarity, *torch.autograd.grad(similarity.square().mean(), inputs)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def check_ops_and_losses() -> None:
    """Run the other ops and the modules of atk.nn, forward and backward."""
    frames, tokens = torch.randn(5, 40, 64, requires_grad=True), torch.randn(5, 9, 64, requires_grad=True)
    vectors = frames.mean(1), tokens.mean(1)
    values = {
        "atk.max_mean_similarity_pairs": atk.max_mean_similarity_pairs(frames, tokens).sum(),
        "atk.max_mean_similarity_varlen": atk.max_mean_similarity_varlen(
            frames[0], tokens[0], torch.tensor([0, 15, 40]).int(), torch.tensor([0, 9]).int()
        ).sum(),
        "atk.max_mean_similarity in float64": atk.max_mean_similarity(frames.double(), tokens.double()).sum(),
        "atk.info_nce": atk.info_nce(*vectors, 5.0),
        "atk.pairwise_logsumexp": atk.pairwise_logsumexp(*vectors, 5.0)[0].sum(),
        "atk.sigmoid_loss": atk.sigmoid_loss(*vectors, 5.0, -2.0),
        "atk.aligned_sigmoid_loss": atk.aligned_sigmoid_loss(frames, tokens, 5.0, -2.0, normalize=True),
        "atk.aligned_info_nce": atk.aligned_info_nce(frames, tokens, 5.0, normalize=True),
        "atk.cross_attention_difference": atk.cross_attention_difference(
            frames, frames, tokens, tokens, torch.randn(64, 64), num_heads=4
        ).sum(),
        "atk.nn.InfoNCELoss": atk.nn.InfoNCELoss(learnable=True)(*vectors),
        "atk.nn.AlignedContrastiveLoss": atk.nn.AlignedContrastiveLoss()(*vectors, frames, tokens),
        "atk.nn.SigmoidLoss": atk.nn.SigmoidLoss()(*vectors),
        "atk.nn.SubtractionDifference": atk.nn.SubtractionDifference()(frames, frames.flip(1)).sum(),
        "atk.nn.MLPMapper": atk.nn.MLPMapper(64, 32)(vectors[0]).sum(),
        "atk.nn.CrossAttentionDifference": atk.nn.CrossAttentionDifference(64, 4)(frames, tokens).sum(),
        "atk.nn.TransformerMapper": atk.nn.TransformerMapper(64, 32, heads=4)(frames).sum(),
    }
    for name, value in values.items():
        gradients = torch.autograd.grad(value, (frames, tokens), retain_graph=True, allow_unused=True)
        if gradients[0] is None or not gradients[0].isfinite().all():
            sys.exit(f"{name} has no finite gradient")
        print(f"{name} runs forward and backward")


def check_missing_extra() -> None:
    """Exit unless `atk train` ends with code 2 and one line that names the extra to install."""
    command = [Path(sys.executable).with_name("atk"), "train", "aligned", "--data", "DIR", "--out", "RUN"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 2 or result.stderr.count("\n") != 1 or "audio-text-kernels[train]" not in result.stderr:
        sys.exit(f"atk train must name the extra in one line and exit with 2, got {result.returncode}: {result.stderr}")
    print(result.stderr.strip())


main()
