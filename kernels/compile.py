"""Compiles the Triton kernels for a GPU that need not be there, and reads registers, spills and matrix instructions."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import torch

from atk.kernels.launch import Device, Launch, max_mean_launch

_MULTIPROCESSORS = 132  # no compile-time argument depends on it
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in _POINTERS}


@dataclass(frozen=True)
class Case:
    """One kernel for embeddings of one dtype, D channels and L_t tokens; `index`: forward keeps the winners."""

    kernel: str
    dtype: torch.dtype
    L_t: int
    D: int
    masks: bool = True
    index: bool = True


@dataclass(frozen=True)
class Row:
    """What the compiler made of one kernel configuration; sizes in bytes, `hgmma` and `hmma` as instruction counts.

    `spills` is local memory a thread (stack and spilled registers); `hgmma` are Hopper's warpgroup matrix
    instructions, `hmma` those of one warp.
    """

    kernel: str
    dtype: str
    L_t: int
    D: int
    config: str
    registers: int
    spills: int
    shared: int
    hgmma: int
    hmma: int


def representative_cases(dtypes: Iterable[torch.dtype] = tuple(_POINTERS)) -> list[Case]:
    """Each class of L_t and each class of D (small to streamed; uneven; not aligned) that the heuristics tell apart."""
    shapes = [(L_t, 128) for L_t in (8, 16, 32, 64, 128, 300)] + [(32, D) for D in (16, 64, 192, 256, 768, 100)]
    shapes += [(8, 256), (128, 256), (8, 768), (128, 768), (300, 768)]
    cases = []
    for dtype in dtypes:
        for kernel in ("forward", "grad_audio", "grad_text"):
            cases += [Case(kernel, dtype, L_t, D) for L_t, D in shapes]
            cases.append(Case(kernel, dtype, 32, 128, masks=False))
        cases.append(Case("forward", dtype, 32, 128, index=False))
    return cases


def compile_report(arch: str, cases: Iterable[Case] | None = None, workers: int = 1) -> list[Row]:
    """Compiles `cases` (default: all representative ones) for `arch` such as "sm_90", in `workers` processes.

    Cases that come to the same code are compiled once. A script that asks for several workers needs the usual
    `if __name__ == "__main__"`.

    Raises:
        ValueError: `arch` is not of the form sm_NN.
        RuntimeError: triton is missing, or runs as an interpreter.
    """
    match = re.fullmatch(r"sm_(\d+)(\d)a?", arch)
    if match is None:
        raise ValueError(f"arch must be of the form 'sm_90', got {arch!r}")
    capability = int(match[1]), int(match[2])
    unique = {}
    for case in representative_cases() if cases is None else cases:
        launch = _launch(case, capability)
        unique.setdefault(tuple(_source(case, launch).items()), (case, launch))
    jobs = [(case, launch, capability) for case, launch in unique.values()]
    _check_triton()
    if workers == 1:
        return [_compile(job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_compile, jobs))


def format_table(rows: list[Row]) -> str:
    """The rows as an aligned plain-text table."""
    cells = [[field.name for field in fields(Row)], *([str(value) for value in astuple(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _check_triton() -> None:
    try:
        from triton import knobs
    except ImportError as error:
        raise RuntimeError("triton is not installed; pip install 'audio-text-kernels[triton]'") from error
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 replaces the compiler by the interpreter; unset it to compile kernels")


def _launch(case: Case, capability: tuple[int, int]) -> Launch:
    return max_mean_launch(case.kernel, case.dtype, case.L_t, case.D, Device(capability, _MULTIPROCESSORS))


def _source(case: Case, launch: Launch) -> dict[str, object]:
    """What the compiled code depends on: the launch, the argument types, the divisibility of D by 16."""
    index = "*u8" if case.L_t <= 256 else "*i16"
    return {
        "kernel": case.kernel,
        "embeddings": _POINTERS[case.dtype],
        "index": index if case.index or case.kernel != "forward" else None,
        "mask": "*u8" if case.masks else None,
        "aligned": case.D % 16 == 0,
        **launch.meta(case.D),
    }


def _compile(job: tuple[Case, Launch, tuple[int, int]]) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from atk.kernels import max_mean

    case, launch, capability = job
    source = _source(case, launch)
    options = {name: source.pop(name) for name in ("num_warps", "num_stages")}
    kernel = getattr(max_mean, f"{case.kernel}_kernel")
    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in ("audio", "text", "grad_audio", "grad_text"):
            kind = source["embeddings"]
        elif name in ("audio_mask", "text_mask", "index"):
            kind = source["index" if name == "index" else "mask"]
        elif name in ("sim", "grad", "inverse", "peak"):
            kind = "*fp32"
        else:
            kind = "constexpr" if name in source else "i32"
        signature[name] = kind or "constexpr"  # an absent tensor is the constant None
        if signature[name] == "constexpr":
            constants[name] = source.get(name)
        elif kind != "i32" or (name == "D" and source["aligned"]):
            attributes[(position,)] = [["tt.divisibility", 16]]
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)
    tiles = f"{launch.frames}x{launch.captions}x{launch.tokens}x{launch.channels}"
    config = f"{tiles} warps={launch.warps} stages={launch.stages}" + " stationary" * bool(launch.stationary)
    config += "" if case.masks else " unmasked"
    config += "" if case.index else " no index"
    registers, spills, hgmma, hmma = _inspect(compiled.asm["cubin"])
    dtype = _DTYPE_NAMES[case.dtype]
    shared = compiled.metadata.shared
    return Row(case.kernel, dtype, case.L_t, case.D, config, registers, spills, shared, hgmma, hmma)


def _inspect(cubin: bytes) -> tuple[int, int, int, int]:
    """Registers, bytes of local memory, HGMMA and HMMA instructions, read by the disassembler in Triton's wheel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.check_output([knobs.nvidia.cuobjdump.path, option, path], text=True, stderr=subprocess.PIPE)
            for option in ("--dump-resource-usage", "-sass")
        )
    registers, stack, local = map(int, re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage).groups())
    return registers, stack + local, len(re.findall(r"\bHGMMA\b", sass)), len(re.findall(r"\bHMMA\b", sass))
