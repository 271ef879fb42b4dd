"""Runs the op forward and backward through the C++ extension, in an environment with only the wheel installed.

Each instruction set that this CPU supports is forced in turn, down to the x86-64 baseline.
"""

import shutil
import sys

import torch

import atk
from atk.kernels import cpp

if not atk.__file__.startswith(sys.prefix) or shutil.which("c++") or shutil.which("g++"):
    sys.exit(f"not a clean environment: atk comes from {atk.__file__}, C++ compiler: {shutil.which('c++')}")
for dtype in (torch.float32, torch.bfloat16, torch.float16):
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
print("atk.max_mean_similarity agrees with the reference under", ", ".join(cpp._C.available_isas()))
