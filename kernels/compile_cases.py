"""Kernel configurations to compile: all that the launch heuristics can choose, or a representative selection."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from atk.kernels.compile_signatures import (
    ATTENTION_KERNELS,
    INFO_NCE_KERNELS,
    MAX_MEAN_KERNELS,
    SIGMOID_KERNELS,
    SMALL_KERNELS,
    Case,
)
from atk.kernels.sequences import tile_width

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One of each kind: 32, multiples of each power of two from 64 up, and unaligned rows.
CHANNELS = (32, 64, 128, 256, 512, 192, 100, 40)
# (channels, heads): head widths that are powers of two, then an unaligned one and one that needs padding.
HEADS = ((256, 16), (256, 8), (768, 12), (768, 6), (1024, 4), (40, 2), (768, 8))


def every_case(dtypes: Iterable[torch.dtype] = DTYPES) -> Iterator[Case]:
    """Every configuration that the launch heuristics can choose.

    For max-mean similarity, these are all combinations of length class, number of channels, and index dtype. Classes as
    wide as a tile also occur with pairs. Sparse weights, missing masks, and (except for pairs) missing accumulation
    are compiled for 64 and 128 channels only.
    """
    for dtype in dtypes:
        yield from _small_cases(dtype)
        yield from attention_cases(dtype)
        yield from logit_cases(dtype)
        for kernel in MAX_MEAN_KERNELS:
            for case in _length_class_cases(kernel, dtype):
                for index_bytes in (0, 1, 2, 4) if kernel == "forward" else (1, 2, 4):
                    yield replace(case, index_bytes=index_bytes)
                    if case.tokens == tile_width(dtype):
                        yield replace(case, index_bytes=index_bytes, pairs=True, accumulate=False)
                if case.D in (128, 64):
                    yield from _variants(case)


def representative_cases(dtypes: Iterable[torch.dtype] = DTYPES) -> Iterator[Case]:
    """Max-mean kernels for each length class at 128 channels and each width at 32 tokens; the rest once per kind."""
    for dtype in dtypes:
        yield from _small_cases(dtype)
        yield from (case for case in attention_cases(dtype) if (case.D, case.heads) == (768, 12))
        yield from (case for case in logit_cases(dtype) if case.D == 512)
        for kernel in MAX_MEAN_KERNELS:
            classes = [case for case in _length_class_cases(kernel, dtype) if case.D == 128 or case.tokens == 32]
            yield from classes
            yield from _variants(Case(kernel, dtype))
            yield Case(kernel, dtype, tile_width(dtype), accumulate=False, pairs=True)
            if kernel == "forward":
                yield from (replace(case, index_bytes=0) for case in classes if case.D == 128)


def attention_cases(dtype: torch.dtype) -> Iterator[Case]:
    """The kernels of the cross-attention difference: every head width with a mask, one head width without one."""
    for kernel in ATTENTION_KERNELS:
        for D, heads in HEADS if kernel != "gate" else [(768, 12), (40, 2)]:
            yield Case(kernel, dtype, 0, D, heads=heads)
        yield Case(kernel, dtype, 0, 768, masks=False, heads=12)


def logit_cases(dtype: torch.dtype) -> Iterator[Case]:
    """The matrix kernels of InfoNCE, in both directions and for rows only, and of the sigmoid loss, with and without
    positives, for each tile width."""
    for D in (512, 32):
        for kernel in INFO_NCE_KERNELS:
            yield from (Case(kernel, dtype, 0, D, columns=columns) for columns in (True, False))
        for kernel in SIGMOID_KERNELS:
            yield from (Case(kernel, dtype, 0, D, positives=positives) for positives in (True, False))


def _length_class_cases(kernel: str, dtype: torch.dtype) -> Iterator[Case]:
    width = tile_width(dtype)
    for D in CHANNELS:
        for tokens in (8, 16, 32, 64, 128):
            if tokens <= width:
                yield Case(kernel, dtype, tokens, D)
        yield Case(kernel, dtype, width, D, chunked=True)


def _variants(case: Case) -> Iterator[Case]:
    yield replace(case, sparse=True)
    yield replace(case, masks=False)
    yield replace(case, accumulate=False)
    yield replace(case, masks=False, accumulate=False)


def _small_cases(dtype: torch.dtype) -> Iterator[Case]:
    for kernel in (name for names in SMALL_KERNELS.values() for name in names):
        for masks in (True, False):
            if masks or kernel not in ("plan", "weights", "text_lists", "frame_lists", "normalize_backward", "key_end"):
                yield from (Case(kernel, dtype, 32, D, masks=masks) for D in CHANNELS)
