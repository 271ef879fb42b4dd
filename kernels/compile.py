"""Compiles the Triton kernels for a GPU architecture without needing the GPU, and inspects the machine code.

Reports registers, spills, shared memory, matrix instructions, how far copies run ahead, and clocks by pipe.
"""

import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields, replace
from multiprocessing import get_context
from typing import Any

from atk.kernels.compile_signatures import (
    ALL_ATTENTION_KERNELS,
    ALL_LOGIT_KERNELS,
    ATTENTION_KERNELS,
    MAX_MEAN_KERNELS,
    PRODUCT_KERNELS,
    SIGMOID_KERNELS,
    Capability,
    Case,
    CompileArguments,
    compile_arguments,
    find_kernel,
)
from atk.kernels.pipes import Clocks, clocks
from atk.kernels.sass import MachineCode, disassemble, main_loop, resource_usage, tiles_ahead
from atk.kernels.sequences import packed_width

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

    Attributes:
        spills: local memory per thread in bytes: stack and spilled registers; 0 if no instruction accesses it, because
            ptxas 13 reserves stack that it does not use.
        shared_bytes: shared memory in bytes.
        hgmma: number of warpgroup matrix instructions (Hopper).
        hmma: number of matrix instructions of a single warp.
        ahead: iterations of the main loop that asynchronous copies run ahead, None without such copies; see
            `tiles_ahead`.
        clocks: clocks of a tile by pipe, None for kernels without products and unknown GPUs; see `pipes.py`. A tile is
            an iteration of the main loop, with all steps of the product over channels if that is a loop inside of it.
    """

    kernel: str
    dtype: str
    tokens: int
    D: int
    config: str
    registers: int
    spills: int
    shared_bytes: int
    hgmma: int
    hmma: int
    ahead: int | None = None
    clocks: Clocks | None = None


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
    """Formats the rows as an aligned plain-text table, with a column for each pipe and one for the pipe that binds."""
    pipes = [field.name for field in fields(Clocks)]
    cells = [[*(field.name for field in fields(Row) if field.name != "clocks"), *pipes, "binds"]]
    for row in rows:
        clocks_of_pipes = ["-"] * (len(pipes) + 1) if row.clocks is None else [*astuple(row.clocks), row.clocks.busiest]
        values = [getattr(row, name) for name in cells[0][: -len(clocks_of_pipes)]]
        cells.append(["-" if value is None else str(value) for value in [*values, *clocks_of_pipes]])
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
    return compile_case(*job)[0]


def compile_case(case: Case, capability: Capability) -> tuple[Row, MachineCode]:
    """Compiles one kernel configuration."""
    arguments = compile_arguments(case, capability)
    compiled = _triton_compile(arguments, capability)
    code = disassemble(compiled.asm["cubin"])
    row = Row(
        case.kernel, str(case.dtype).removeprefix("torch."), case.tokens, case.D, config=_describe(case, arguments),
        registers=code.registers, spills=code.local_bytes, shared_bytes=compiled.metadata.shared,
        hgmma=sum(one.name == "HGMMA" for one in code.instructions),
        hmma=sum(one.name == "HMMA" for one in code.instructions),
    )  # fmt: skip
    if case.kernel not in PRODUCT_KERNELS:
        return row, code
    trips = _trips(case, arguments.constants)
    tile_clocks = clocks(code.instructions, arguments.options["num_warps"], capability, trips)
    return replace(row, ahead=tiles_ahead(main_loop(code.instructions)), clocks=tile_clocks), code


def compile_usage(case: Case, capability: Capability) -> tuple[int, int, int]:
    """Compiles one kernel configuration: registers, spills, and bytes of shared memory, as in `Row`, in less time."""
    compiled = _triton_compile(compile_arguments(case, capability), capability)
    return *resource_usage(compiled.asm["cubin"]), compiled.metadata.shared


def _triton_compile(arguments: CompileArguments, capability: Capability) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = find_kernel(arguments.kernel)
    source = ASTSource(kernel, arguments.signature, arguments.constants, arguments.attributes)
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    return triton.compile(source, target=target, options=arguments.options)


def _trips(case: Case, constants: dict[str, Any]) -> int:
    """Iterations of the loop over channels, for kernels that have one inside of another loop."""
    if case.kernel in ATTENTION_KERNELS:
        return -(-case.D // case.heads // constants["CHANNELS"])
    return packed_width(case.D) // constants["BLOCK_D" if case.kernel in MAX_MEAN_KERNELS else "CHANNELS"]


def _describe(case: Case, arguments: CompileArguments) -> str:
    """Describes a configuration: tile sizes, launch options, and flags."""
    constants = arguments.constants
    words: list[str] = []
    if case.kernel in PRODUCT_KERNELS:
        max_mean = case.kernel in MAX_MEAN_KERNELS
        names = ("BLOCK_A", "C", "LT", "BLOCK_D") if max_mean else ("ROWS", "COLUMNS", "CHANNELS")
        words.append("x".join(str(constants[name]) for name in names))
        words.append("warps={num_warps} stages={num_stages}".format(**arguments.options))
        words.append("stationary" * bool(constants.get("STATIONARY")))
    if case.kernel in ALL_ATTENTION_KERNELS:
        words += [f"heads={case.heads}"] * ("WIDTH" in constants) + ["masks"] * case.masks
        return " ".join(filter(None, words))
    if case.kernel in SIGMOID_KERNELS:
        return " ".join([*filter(None, words), *["positives"] * case.positives])
    if case.kernel in ALL_LOGIT_KERNELS:
        return " ".join([*filter(None, words), "columns" if case.columns else "rows only"])
    words += [name for name in ("chunked", "masks", "accumulate", "sparse", "pairs") if getattr(case, name)]
    return " ".join([*filter(None, words), f"index={case.index_bytes}"])
