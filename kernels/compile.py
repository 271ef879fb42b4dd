"""Compiles the Triton kernels for a GPU architecture without needing the GPU, and inspects the machine code.

Reports registers, spills, shared memory, and matrix instructions.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from multiprocessing import get_context
from pathlib import Path

from atk.kernels.compile_signatures import (
    ALL_ATTENTION_KERNELS,
    ALL_LOGIT_KERNELS,
    ATTENTION_KERNELS,
    LOGIT_KERNELS,
    MAX_MEAN_KERNELS,
    SIGMOID_KERNELS,
    Capability,
    Case,
    CompileArguments,
    compile_arguments,
    find_kernel,
)

_KIB = 1024
# Bytes of shared memory that a program can use on each architecture.
SHARED_MEMORY = {
    "sm_80": 163 * _KIB,
    **dict.fromkeys(("sm_86", "sm_89", "sm_120"), 99 * _KIB),
    **dict.fromkeys(("sm_90", "sm_100"), 227 * _KIB),
}


@dataclass(frozen=True)
class Row:
    """The compiled code of one kernel configuration.

    `spills` is local memory per thread in bytes (stack and spilled registers), 0 if no instruction accesses it, because
    ptxas 13 reserves stack that it does not use. `shared` is shared memory in bytes.
    `hgmma` counts warpgroup matrix instructions (Hopper); `hmma` counts matrix instructions of a single warp.
    """

    kernel: str
    dtype: str
    tokens: int
    D: int
    config: str
    registers: int
    spills: int
    shared: int
    hgmma: int
    hmma: int


def compile_report(arch: str, cases: Iterable[Case], workers: int = 1, progress: bool = False) -> list[Row]:
    """Compiles kernel configurations and reports on each.

    Cases that give the same code are compiled once.

    Args:
        arch: GPU architecture such as "sm_90".
        cases: configurations, for example from `compile_cases.py`.
        workers: number of processes. With several, a script needs an `if __name__ == "__main__"` guard.
        progress: whether to show a progress bar.

    Raises:
        ValueError: `arch` is not of the form sm_NN, or TRITON_INTERPRET=1 is set.
        ImportError: triton is not installed.
    """
    match = re.fullmatch(r"sm_(\d+)(\d)a?", arch)
    if match is None:
        raise ValueError(f"arch must be of the form 'sm_90', got {arch!r}")
    capability = (int(match[1]), int(match[2]))
    _check_triton()
    unique: dict[str, Case] = {}
    for case in cases:
        unique.setdefault(str(compile_arguments(case, capability)), case)
    jobs = [(case, capability) for case in unique.values()]
    if workers == 1:
        return list(_counted(map(_compile, jobs), len(jobs), progress))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(_counted(pool.map(_compile, jobs), len(jobs), progress))


def _counted(rows: Iterable[Row], total: int, progress: bool) -> Iterable[Row]:
    if not progress:
        return rows
    from tqdm import tqdm  # pyrefly: ignore[untyped-import]  # its stubs are a separate package

    return tqdm(rows, desc="compile", total=total)


def format_table(rows: list[Row]) -> str:
    """Formats the rows as an aligned plain-text table."""
    cells = [[field.name for field in fields(Row)], *([str(value) for value in astuple(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def _check_triton() -> None:
    try:
        from triton import knobs
    except ImportError as error:
        raise ImportError("needs triton; pip install 'audio-text-kernels[triton]'") from error
    if knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET=1 replaces the compiler with the interpreter; unset it to compile kernels")


def _compile(job: tuple[Case, Capability]) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case, capability = job
    arguments = compile_arguments(case, capability)
    source = ASTSource(find_kernel(case.kernel), arguments.signature, arguments.constants, arguments.attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    compiled = triton.compile(source, target=target, options=arguments.options)
    registers, spills, hgmma, hmma = _inspect(compiled.asm["cubin"])
    return Row(
        case.kernel, str(case.dtype).removeprefix("torch."), case.tokens, case.D, config=_describe(case, arguments),
        registers=registers, spills=spills, shared=compiled.metadata.shared, hgmma=hgmma, hmma=hmma,
    )  # fmt: skip


def _describe(case: Case, arguments: CompileArguments) -> str:
    """Describes a configuration: tile sizes, launch options, and flags."""
    constants = arguments.constants
    words: list[str] = []
    if case.kernel in (*MAX_MEAN_KERNELS, *ATTENTION_KERNELS, *LOGIT_KERNELS):
        max_mean = case.kernel in MAX_MEAN_KERNELS
        names = ("BLOCK_A", "C", "LT", "BLOCK_D") if max_mean else ("ROWS", "COLUMNS", "CHANNELS")
        words.append("x".join(str(constants[name]) for name in names))
        words.append("warps={num_warps} stages={num_stages}".format(**arguments.options))
        words.append("stationary" * bool(constants.get("STATIONARY")))
    if case.kernel in ALL_ATTENTION_KERNELS:
        words += [f"heads={case.heads}"] * ("WIDTH" in constants) + ["masks"] * case.masks
        return " ".join(words)
    if case.kernel in SIGMOID_KERNELS:
        return " ".join([*filter(None, words), *["positives"] * case.positives])
    if case.kernel in ALL_LOGIT_KERNELS:
        return " ".join([*filter(None, words), "columns" if case.columns else "rows only"])
    words += [name for name in ("chunked", "masks", "accumulate", "sparse", "pairs") if getattr(case, name)]
    return " ".join([*filter(None, words), f"index={case.index_bytes}"])


def _inspect(cubin: bytes) -> tuple[int, int, int, int]:
    """Registers, bytes of local memory, HGMMA and HMMA instructions, from the disassembler in Triton's wheel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.check_output([knobs.nvidia.cuobjdump.path, option, path], text=True, stderr=subprocess.PIPE)
            for option in ("--dump-resource-usage", "-sass")
        )
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cannot read the resource usage that cuobjdump reports: {usage!r}")
    registers, stack, local = map(int, match.groups())
    spills = stack + local if re.search(r"\b(LDL|STL)\b", sass) else 0
    return registers, spills, len(re.findall(r"\bHGMMA\b", sass)), len(re.findall(r"\bHMMA\b", sass))
