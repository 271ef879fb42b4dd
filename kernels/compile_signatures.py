"""What the compiled code of a Triton kernel depends on: argument types, constants, and compiler options."""

import inspect
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

import torch

from atk.kernels.launch import (
    UNFUSED,
    Device,
    gathers_winners,
    info_nce_launch,
    max_mean_launch,
    merge_launch,
    sigmoid_launch,
)
from atk.kernels.launch_attention import cross_attention_launch, head_channels, key_end_launch, pointwise_launch
from atk.kernels.sequences import frame_sizes, packed_width, tile_width

# Kernels with matrix products, by operation.
MAX_MEAN_KERNELS = ("forward", "grad_audio", "grad_text")
ATTENTION_KERNELS = ("attend", "grad_query", "grad_key", "gate")
INFO_NCE_KERNELS = ("lse", "grad_logits")
SIGMOID_KERNELS = ("sigmoid_loss", "sigmoid_grad")
LOGIT_KERNELS = (*INFO_NCE_KERNELS, *SIGMOID_KERNELS)
PRODUCT_KERNELS = (*MAX_MEAN_KERNELS, *ATTENTION_KERNELS, *LOGIT_KERNELS)
UNFUSED_KERNELS = ("grad_query", "grad_key", "grad_logits", "normalize", "normalize_backward")
# The other kernels, by module.
SMALL_KERNELS = {
    "pack_kernels": ("count", "plan", "place", "gather"),
    "sum_parts": ("sum_parts",),
    "weights": ("weights", "text_lists", "frame_lists"),
    "normalize": ("normalize", "normalize_backward"),
    "cross_attention_kernels": ("key_end",),
    "cross_attention_gate": ("gate_backward",),
    "info_nce_kernels": ("merge",),
}
_MODULES = {name: module for module, names in SMALL_KERNELS.items() for name in names}
_MODULES |= dict.fromkeys(MAX_MEAN_KERNELS, "max_mean_gradients") | {"forward": "max_mean_forward"}
_MODULES |= dict.fromkeys(ATTENTION_KERNELS, "cross_attention_kernels") | {"gate": "cross_attention_gate"}
_MODULES |= dict.fromkeys(INFO_NCE_KERNELS, "info_nce_kernels")
_MODULES |= dict.fromkeys(SIGMOID_KERNELS, "sigmoid_kernels")
_MULTIPROCESSORS = 132  # no compile-time argument depends on it
ALL_ATTENTION_KERNELS = {*ATTENTION_KERNELS, "key_end", "gate_backward"}
ALL_LOGIT_KERNELS = {*LOGIT_KERNELS, "merge"}
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_INDEX_POINTERS = {0: None, 1: "*u8", 2: "*i16", 4: "*i32"}
# Tensors of the max-mean, packing, and normalization kernels that have the dtype of the embeddings, and those that are
# float32. The others are int32, except for those that `_pointer` names.
_EMBEDDINGS = {"audio", "text", "frames", "tokens", "grad_audio", "out", "rows", "unit", "grad_rows"}
_FLOATS = {"sim", "grad", "weight", "peak", "carry", "partial", "inverse_norm"}
# Tensors of the cross-attention kernels have the dtype of the embeddings, with these exceptions.
_CROSS_ATTENTION_POINTERS = {"key_mask": "*u8", "key_end": "*i32", "lse": "*fp32", "delta": "*fp32"}
# Tensors of the kernels of InfoNCE and the sigmoid loss that have the dtype of the embeddings; `positive` is int64, and
# the others float32.
_LOGIT_EMBEDDINGS = {"audio", "text", "weights"}
_ALIGNED_STRIDES = ("index_row", "stride")  # multiples of 16
# Tensors that a kernel without a pass over columns does not take.
_COLUMN_TENSORS = {"column_parts", "columns", "grad_columns"}

_Meta: TypeAlias = dict[str, Any]
Capability: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A kernel configuration to compile.

    Attributes:
        kernel: name of the kernel without `_kernel`.
        dtype: of the embeddings.
        tokens: largest caption length of the length class; 0 for cross-attention and losses on global vectors.
        D: channels.
        chunked: whether captions can be longer than `tokens` and are processed in chunks of that length.
        index_bytes: bytes of a winner index; 0 for a forward that saves none.
        masks: whether there are masks.
        accumulate: whether gradients accumulate in float32 buffers, because there are several groups of captions or
            parts of the frames.
        sparse: whether only listed tiles are visited. A sparse forward computes winner indices only.
        pairs: whether clip i is compared with caption i only.
        heads: attention heads of D / heads channels, for the cross-attention difference.
        columns: whether InfoNCE runs in both directions instead of rows only.
        positives: whether clips have positives, for the sigmoid loss.
    """

    kernel: str
    dtype: torch.dtype
    tokens: int = 32
    D: int = 128
    chunked: bool = False
    index_bytes: int = 1
    masks: bool = True
    accumulate: bool = True
    sparse: bool = False
    pairs: bool = False
    heads: int = 1
    columns: bool = True
    positives: bool = True


@dataclass(frozen=True)
class CompileArguments:
    """What the compiled code of a case depends on, as triton.compile takes it."""

    kernel: str
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int], list[list[Any]]]
    options: dict[str, int]


def find_kernel(name: str) -> Any:
    """The Triton kernel of this name."""
    return getattr(import_module(f"atk.kernels.{_MODULES[name]}"), f"{name}_kernel")


def _meta(case: Case, capability: Capability) -> _Meta:
    """The compile-time arguments of a case, including options of the compiler."""
    from atk.kernels.normalize import normalize_launch
    from atk.kernels.pack import gather_block, place_launch
    from atk.kernels.sum_parts import sum_parts_launch

    device = Device(capability, _MULTIPROCESSORS)
    if case.kernel in ATTENTION_KERNELS:
        head = case.D // case.heads
        launch = cross_attention_launch(case.kernel, case.dtype, case.D, case.heads, device)
        return {"WIDTH": head, "HEAD": head_channels(head), **launch.meta()}
    if case.kernel in ALL_ATTENTION_KERNELS:
        return {**(key_end_launch() if case.kernel == "key_end" else pointwise_launch())}
    if case.kernel == "merge":
        return {**merge_launch()}
    if case.kernel in ALL_LOGIT_KERNELS:
        launch_of = sigmoid_launch if case.kernel in SIGMOID_KERNELS else info_nce_launch
        return {"GROUP": 16, **launch_of(case.dtype, packed_width(case.D), device).meta()}
    if case.kernel in SMALL_KERNELS["normalize"]:
        return {**normalize_launch(case.D)}
    width = tile_width(case.dtype)
    meta: _Meta = {"C": width // case.tokens, "LT": case.tokens, "W": width, "PAIRS": case.pairs}
    if case.kernel in MAX_MEAN_KERNELS:
        D = packed_width(case.D)
        winners = case.index_bytes > 0
        launch = max_mean_launch(case.kernel, case.dtype, case.tokens, case.chunked, D, device, winners)
        gather = gathers_winners(case.dtype, case.tokens, device)
        return {**meta, "FRAME_WINNERS": launch.winners_per_frame(meta["C"]), "GATHER": gather, **launch.meta()}
    if case.kernel == "sum_parts":
        return {**sum_parts_launch(packed_width(case.D))}
    small, large = frame_sizes(case.dtype)
    options = place_launch(device) if case.kernel == "place" else {}
    return {**meta, "SMALL": small, "LARGE": large, "BLOCK_D": gather_block(case.D), **options}


def _absent(case: Case) -> set[str]:
    """Names of the tensors that are None in this case; the code depends on it."""
    absent: set[str] = set()
    if not case.masks:
        absent |= {"mask", "audio_mask", "text_mask", "frame_source", "key_mask", "key_end", "bias"}
        if case.kernel == "grad_audio":
            absent.add("source_row")
    if not case.sparse:
        absent |= {"active", "active_count"}
    elif case.kernel == "forward":
        absent.add("sim")
    if not case.accumulate:
        absent.add("carry")
    if not case.columns:
        absent |= _COLUMN_TENSORS
    if not case.positives:
        absent.add("positive")
    return absent


def compile_arguments(case: Case, capability: Capability) -> CompileArguments:
    """The arguments of triton.compile for a case."""
    kernel = find_kernel(case.kernel)
    meta = _meta(case, capability)
    absent = _absent(case)
    options = {
        name: meta.pop(name) for name in ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion") if name in meta
    }
    if case.kernel in UNFUSED_KERNELS:
        options |= UNFUSED
    arguments = CompileArguments(case.kernel, {}, {}, {}, options)
    # Packed rows are aligned for any D of the caller.
    aligned = "D" if case.kernel in (*MAX_MEAN_KERNELS, *LOGIT_KERNELS) else "D_out"
    parameters = inspect.signature(kernel.fn).parameters
    for position, parameter in enumerate(kernel.params):
        name = parameter.name
        if parameter.is_constexpr:
            argument_type = "constexpr"
            arguments.constants[name] = meta.get(name, parameters[name].default)
        elif parameter.do_not_specialize or name in ("D", "D_out", *_ALIGNED_STRIDES):
            argument_type = "i32"
        else:
            pointer = None if name in absent else _pointer(case, name)
            argument_type = pointer or "constexpr"
            if pointer is None:
                arguments.constants[name] = None
        arguments.signature[name] = argument_type
        if argument_type.startswith("*") or name in (aligned, *_ALIGNED_STRIDES) or (name == "D" and case.D % 16 == 0):
            arguments.attributes[position,] = [["tt.divisibility", 16]]
    return arguments


def _pointer(case: Case, name: str) -> str | None:
    """The pointer type of a parameter, or None if the tensor is None."""
    embeddings = _POINTERS[case.dtype]
    if case.kernel in ALL_ATTENTION_KERNELS:
        return _CROSS_ATTENTION_POINTERS.get(name, embeddings)
    if case.kernel in ALL_LOGIT_KERNELS:
        return embeddings if name in _LOGIT_EMBEDDINGS else "*i64" if name == "positive" else "*fp32"
    if name == "index":
        return _INDEX_POINTERS[case.index_bytes]
    if name == "grad_text":
        return "*fp32" if case.accumulate else embeddings
    if name in _EMBEDDINGS or (name == "grad" and case.kernel == "normalize_backward"):
        return embeddings
    if name in _FLOATS:
        return "*fp32"
    return "*u8" if name.endswith("mask") else "*i32"
