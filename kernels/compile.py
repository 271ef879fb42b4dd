"""Compiles the Triton kernels for a GPU that need not be there, and reads registers, spills and matrix instructions."""

import inspect
import re
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch

from atk.kernels.launch import (
    Device,
    cross_attention_launch,
    head_channels,
    info_nce_launch,
    key_end_launch,
    max_mean_launch,
    merge_launch,
    packed_width,
    pointwise_launch,
    tile_width,
)

MATRIX_KERNELS = ("forward", "grad_audio", "grad_text")
ATTENTION_KERNELS = ("attend", "grad_query", "grad_key", "gate")
INFO_NCE_KERNELS = ("lse", "grad_logits")
SMALL_KERNELS = {
    "pack": ("count", "order", "place", "gather", "frame_tiles"),
    "weights": ("weights", "text_lists", "frame_lists"),
    "normalize": ("normalize", "normalize_backward"),
    "cross_attention_kernels": ("key_end",),
    "cross_attention_gate": ("gate_backward",),
    "info_nce_kernels": ("merge",),
}
_MODULES = {name: module for module, names in SMALL_KERNELS.items() for name in names}
_MODULES |= {name: "cross_attention_kernels" for name in ATTENTION_KERNELS}
_MODULES |= {"gate": "cross_attention_gate"} | dict.fromkeys(MATRIX_KERNELS, "max_mean_kernels")
_MODULES |= dict.fromkeys(INFO_NCE_KERNELS, "info_nce_kernels")
_MULTIPROCESSORS = 132  # no compile-time argument depends on it
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in _POINTERS}
_INDEX = {0: None, 1: "*u8", 2: "*i16", 4: "*i32"}
# Which tensors are of the embeddings' type, and which are float32; the other pointers are to integers of 32 bits.
_EMBEDDINGS = {"audio", "text", "grad_audio", "source", "out", "rows", "unit", "grad_rows"}
_FLOATS = {"sim", "grad", "weight", "peak", "carry", "inverse_norm"}
# The kernels of the cross-attention difference take tensors of the embeddings' type, but for _OTHERS.
_CROSS_ATTENTION = {*ATTENTION_KERNELS, "key_end", "gate_backward"}
_OTHERS = {"key_mask": "*u8", "key_end": "*i32", "lse": "*fp32", "delta": "*fp32"}
# Those of InfoNCE take float32, but for the sides, their weights and the positives.
_INFO_NCE = {*INFO_NCE_KERNELS, "merge"}
_SIDES = {"audio", "text", "weights"}
_OF_COLUMNS = {"column_parts", "columns", "grad_columns"}


@dataclass(frozen=True)
class Case:
    """One kernel, for embeddings of one dtype and D channels, and captions of up to `tokens` tokens.

    `heads`: of D / heads channels, for the kernels of the cross-attention difference, whose `tokens` is 0.
    `columns`: InfoNCE in both directions, not rows only; `tokens` is 0.
    `chunked`: longer captions, in chunks of `tokens`; `index`: bytes of a winner, 0 for a forward pass that keeps none;
    `several`: gradients pass through float32 buffers, for there are several classes or groups of captions, or parts of
    the frames; `masks`, `sparse` and `pairs` as in a call. A sparse forward pass computes winners only.
    """

    kernel: str
    dtype: torch.dtype
    tokens: int = 32
    D: int = 128
    chunked: bool = False
    index: int = 1
    masks: bool = True
    several: bool = True
    sparse: bool = False
    pairs: bool = False
    heads: int = 1
    columns: bool = True


@dataclass(frozen=True)
class Row:
    """What the compiler made of one kernel configuration; sizes in bytes, `hgmma` and `hmma` as instruction counts.

    `spills` is local memory a thread (stack and spilled registers); `hgmma` are Hopper's warpgroup matrix
    instructions, `hmma` those of one warp.
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
    """Compiles `cases` for `arch` such as "sm_90", in `workers` processes; `compile_cases.py` has lists of them.

    Cases that come to the same code are compiled once. `progress` shows a bar. A script that asks for several workers
    needs the usual `if __name__ == "__main__"`.

    Raises:
        ValueError: `arch` is not of the form sm_NN.
        RuntimeError: triton is missing, or runs as an interpreter.
    """
    match = re.fullmatch(r"sm_(\d+)(\d)a?", arch)
    if match is None:
        raise ValueError(f"arch must be of the form 'sm_90', got {arch!r}")
    capability = int(match[1]), int(match[2])
    _check_triton()
    unique = {}
    for case in cases:
        unique.setdefault(str(_arguments(case, capability)), case)
    jobs = [(case, capability) for case in unique.values()]
    if workers == 1:
        return list(_counted(map(_compile, jobs), len(jobs), progress))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(_counted(pool.map(_compile, jobs), len(jobs), progress))


def _counted(rows: Iterable[Row], total: int, progress: bool) -> Iterable[Row]:
    if not progress:
        return rows
    from tqdm import tqdm

    return tqdm(rows, desc="compile", total=total)


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


def _kernel(name: str):
    return getattr(import_module(f"atk.kernels.{_MODULES[name]}"), f"{name}_kernel")


def _meta(case: Case, capability: tuple[int, int]) -> dict[str, object]:
    """The compile-time numbers of a case, `num_warps` and `num_stages` of the matrix kernels among them."""
    from atk.kernels.normalize import normalize_launch
    from atk.kernels.pack import gather_block

    if case.kernel in ATTENTION_KERNELS:
        width, device = case.D // case.heads, Device(capability, _MULTIPROCESSORS)
        launch = cross_attention_launch(case.kernel, case.dtype, case.D, case.heads, device)
        return {"WIDTH": width, "HEAD": head_channels(width)} | launch.meta()
    if case.kernel in _CROSS_ATTENTION:
        return key_end_launch() if case.kernel == "key_end" else pointwise_launch()
    if case.kernel in _INFO_NCE:
        launch = info_nce_launch(case.dtype, packed_width(case.D), Device(capability, _MULTIPROCESSORS))
        return merge_launch() if case.kernel == "merge" else {"GROUP": 16} | launch.meta()
    width = tile_width(case.dtype)
    meta = {"C": width // case.tokens, "LT": case.tokens, "W": width, "PAIRS": case.pairs}
    if case.kernel in MATRIX_KERNELS:
        device = Device(capability, _MULTIPROCESSORS)
        D = packed_width(case.D)
        return meta | max_mean_launch(case.kernel, case.dtype, case.tokens, case.chunked, D, device).meta()
    if case.kernel in SMALL_KERNELS["normalize"]:
        return normalize_launch(case.D)
    return meta | {"SIZE": 64, "BLOCK_D": gather_block(case.D)}


def _absent(case: Case) -> set[str]:
    """Names of the tensors that this case does without: None, which the code depends on."""
    absent = set()
    if not case.masks:
        absent |= {"mask", "key_mask", "key_end", "bias"} | ({"home"} if case.kernel == "grad_audio" else set())
    if not case.sparse:
        absent |= {"active", "active_count"}
    elif case.kernel == "forward":
        absent.add("sim")
    if not case.several:
        absent.add("carry")
    if not case.columns:
        absent |= _OF_COLUMNS
    return absent


def _arguments(case: Case, capability: tuple[int, int]) -> tuple[dict, dict, dict, dict]:
    """Signature, constants, attributes and options, as triton.compile takes them: what the code depends on."""
    kernel, meta, absent = _kernel(case.kernel), _meta(case, capability), _absent(case)
    options = {name: meta.pop(name) for name in ("num_warps", "num_stages") if name in meta}
    signature, constants, attributes = {}, {}, {}
    packed = "D" if case.kernel in (*MATRIX_KERNELS, *INFO_NCE_KERNELS) else "D_out"  # aligned, whatever the caller's D
    parameters = inspect.signature(kernel.fn).parameters
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            kind, constants[name] = "constexpr", meta.get(name, parameters[name].default)
        elif parameter.do_not_specialize or name in ("D", "D_out"):
            kind = "i32"
        else:
            kind = None if name in absent else _pointer(case, name)
            kind, constants = (kind, constants) if kind else ("constexpr", constants | {name: None})
        signature[name] = kind
        if kind.startswith("*") or name == packed or (name == "D" and case.D % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return {"kernel": case.kernel} | signature, constants, attributes, options


def _pointer(case: Case, name: str) -> str | None:
    if case.kernel in _CROSS_ATTENTION:
        return _OTHERS.get(name, _POINTERS[case.dtype])
    if case.kernel in _INFO_NCE:
        return _POINTERS[case.dtype] if name in _SIDES else "*i64" if name == "positive" else "*fp32"
    if name == "index":
        return _INDEX[case.index]
    if name == "grad_text":
        return "*fp32" if case.several else _POINTERS[case.dtype]
    embeddings = name in _EMBEDDINGS or (name == "grad" and case.kernel == "normalize_backward")
    return _POINTERS[case.dtype] if embeddings else "*fp32" if name in _FLOATS else "*u8" if name == "mask" else "*i32"


def _compile(job: tuple[Case, tuple[int, int]]) -> Row:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case, capability = job
    signature, constants, attributes, options = _arguments(case, capability)
    kernel = _kernel(signature.pop("kernel"))
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)
    registers, spills, hgmma, hmma = _inspect(compiled.asm["cubin"])
    config = _describe(case, constants, options)
    shared = compiled.metadata.shared
    return Row(
        case.kernel, _DTYPE_NAMES[case.dtype], case.tokens, case.D, config, registers, spills, shared, hgmma, hmma
    )


def _describe(case: Case, constants: dict, options: dict) -> str:
    """The configuration in words: tile sizes and what departs from a plain call."""
    words = []
    if case.kernel in (*MATRIX_KERNELS, *ATTENTION_KERNELS, *INFO_NCE_KERNELS):
        matrix = case.kernel in MATRIX_KERNELS
        names = ("BLOCK_A", "C", "LT", "BLOCK_D") if matrix else ("ROWS", "COLUMNS", "CHANNELS")
        words.append("x".join(str(constants[name]) for name in names))
        words.append("warps={num_warps} stages={num_stages}".format(**options))
        words.append("stationary" * bool(constants.get("STATIONARY")))
    if case.kernel in _CROSS_ATTENTION:
        words += [f"heads={case.heads}"] * ("WIDTH" in constants) + ["masks"] * case.masks
        return " ".join(words)
    if case.kernel in _INFO_NCE:
        return " ".join([*filter(None, words), "columns" if case.columns else "rows only"])
    words += [name for name in ("chunked", "masks", "several", "sparse", "pairs") if getattr(case, name)]
    return " ".join([*filter(None, words), f"index={case.index}"])


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
