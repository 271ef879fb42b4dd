"""The C++ extension on CPUs with less than this one: each instruction set forced, and where its machine code stands."""

import platform
import re
import shutil
import subprocess
from functools import cache

import pytest
import torch

import atk

_C = pytest.importorskip("atk._C", reason="the C++ extension is not built")
WIDE = {"max_mean_avx2.cpp", "max_mean_avx512.cpp", "max_mean_avx512_bf16.cpp"}  # called where the CPU has them


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_op_gives_the_same_on_an_older_cpu(isa, dtype):
    if isa not in _C.available_isas():
        pytest.skip(f"this CPU does not run {isa}")
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
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


@cache
def machine_code():
    """{address of a function: its name, its source file ("" where the linker shares it), its instructions}."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("not an x86-64 CPU")
    if not shutil.which("readelf") or not shutil.which("objdump"):
        pytest.skip("readelf and objdump (binutils) are missing")
    functions, source = {}, ""
    for line in command("readelf", "-sW"):
        _, address, _, kind, binding, *_, name = [*line.split(), "", "", ""][:8] if line.strip() else [""] * 8
        if kind == "FILE":
            source = name
        elif kind == "FUNC":
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


def test_code_above_the_baseline_stands_in_its_own_files():
    """AVX and later are known by the letter v before the mnemonic, which no instruction of SSE2 has."""
    wide = [(name, source) for name, source, body in machine_code().values() if any(line[0] == "v" for line in body)]
    assert {source for _, source in wide} >= WIDE  # the symbols are read as meant
    assert [each for each in wide if each[1] not in WIDE] == []


def test_avx2_code_uses_no_register_of_avx512():
    registers = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])\b")
    using = {source for _, source, body in machine_code().values() if registers.search("\n".join(body))}
    assert using == WIDE - {"max_mean_avx2.cpp"}


def test_nothing_above_the_baseline_runs_when_the_module_is_loaded():
    started = [(name, source) for name, source, _ in machine_code().values() if name.startswith("_GLOBAL__sub_I")]
    assert [each for each in started if each[1] in WIDE] == []
