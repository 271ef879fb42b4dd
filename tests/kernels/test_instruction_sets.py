"""The C++ extension on older CPUs: each instruction set forced, and which source files its machine code comes from."""

import platform
import re
import shutil
import subprocess
from functools import cache

import pytest
import torch

import atk

_C = pytest.importorskip("atk._C", reason="the C++ extension is not built")
AVX2 = {"max_mean_avx2.cpp", "max_mean_avx2_vnni.cpp"}
WIDE = AVX2 | {"max_mean_avx512.cpp", "max_mean_avx512_vnni.cpp", "max_mean_avx512_bf16.cpp"}  # where the CPU has them


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_op_gives_the_same_on_an_older_cpu(isa, dtype):
    audio, text = torch.randn(5, 70, 48).to(dtype), torch.randn(7, 13, 48).to(dtype)
    mask = torch.rand(7, 13) < 0.7
    results = []
    _C.set_isa(isa)
    try:
        for backend in ("cpp", "reference"):
            inputs = audio.clone().requires_grad_(), text.clone().requires_grad_()
            similarity = atk.max_mean_similarity(*inputs, text_mask=mask, backend=backend, normalize=True)
            results.append((similarity, *torch.autograd.grad(similarity.square().sum(), inputs)))
        assert _C.isa() == isa
    finally:
        _C.set_isa(_C.available_isas()[0])
    for result, reference in zip(*results, strict=True):
        torch.testing.assert_close(result, reference)


@cache
def machine_code():
    """{function address: (name, source file, instructions)}; the file is "" for functions the linker may share."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("not an x86-64 CPU")
    if not shutil.which("readelf") or not shutil.which("objdump"):
        pytest.skip("readelf and objdump (binutils) are missing")
    functions, source = {}, ""
    for line in command("readelf", "-sW"):
        _, address, _, symbol_type, binding, *_, name = [*line.split(), "", "", ""][:8] if line.strip() else [""] * 8
        if symbol_type == "FILE":
            source = name
        elif symbol_type == "FUNC":
            functions[int(address, 16)] = (name, source if binding == "LOCAL" else "", [])
    body = []
    for line in command("objdump", "-d", "-j", ".text", "--no-show-raw-insn"):
        if start := re.match(r"([0-9a-f]+) <.*>:$", line):
            body = functions.setdefault(int(start[1], 16), (line, "", []))[2]
        elif instruction := re.match(r"\s+[0-9a-f]+:\s+(.*)", line):
            body.append(instruction[1])
    return functions


def command(*words):
    return subprocess.run([*words, _C.__file__], capture_output=True, text=True, check=True).stdout.splitlines()


def test_only_the_wide_files_hold_code_above_the_baseline():
    """Mnemonics of AVX and later start with v; no SSE2 instruction does."""
    wide = [(name, source) for name, source, body in machine_code().values() if any(line[0] == "v" for line in body)]
    assert {source for _, source in wide} >= WIDE  # the symbols were parsed correctly
    assert [function for function in wide if function[1] not in WIDE] == []


def test_avx2_code_uses_no_avx512_registers():
    registers = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])\b")
    users = {source for _, source, body in machine_code().values() if registers.search("\n".join(body))}
    assert users == WIDE - AVX2


def test_nothing_above_the_baseline_runs_at_import():
    initializers = [(name, source) for name, source, _ in machine_code().values() if name.startswith("_GLOBAL__sub_I")]
    assert [function for function in initializers if function[1] in WIDE] == []
