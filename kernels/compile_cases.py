"""Which kernel configurations there are to compile: all that the launch heuristics can choose, or one of each kind."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch

from atk.kernels.compile import ATTENTION_KERNELS, INFO_NCE_KERNELS, MATRIX_KERNELS, SMALL_KERNELS, Case
from atk.kernels.launch import tile_width

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One of each class: 32, multiples of each power of two from 64 on, and rows that are not aligned.
CHANNELS = (32, 64, 128, 256, 512, 192, 100, 40)
# Channels and heads: widths of each power of two, then rows that are not aligned, or padded to a power of two.
HEADS = ((256, 16), (256, 8), (768, 12), (768, 6), (1024, 4), (40, 2), (768, 8))
_FLAGS = ({"sparse": True}, {"masks": False}, {"several": False}, {"masks": False, "several": False})


def every_case(
    dtypes: Iterable[torch.dtype] = DTYPES,
    indices: Iterable[int] = (0, 1, 2, 4),
    kernels: Iterable[str] = MATRIX_KERNELS,
) -> Iterator[Case]:
    """Each matrix kernel for each class of tokens and of channels, type of winners, and for pairs; the others.

    Calls that are sparse, without masks or with a single class are there for 128 and 64 channels.
    """
    indices = tuple(indices)
    for dtype in dtypes:
        yield from _small_cases(dtype)
        yield from attention_cases(dtype)
        yield from info_nce_cases(dtype)
        for kernel in MATRIX_KERNELS:
            for case in _classes(kernel, dtype):
                for index in indices if kernel == "forward" else [size for size in indices if size]:
                    yield replace(case, index=index)
                    if case.tokens == tile_width(dtype):
                        yield replace(case, index=index, pairs=True, several=False)
                if case.D in (128, 64):
                    yield from (replace(case, **flags) for flags in _FLAGS)


def representative_cases(dtypes: Iterable[torch.dtype] = DTYPES) -> Iterator[Case]:
    """Each class of tokens at 128 channels, each class of channels at 32 tokens, each flag once; the other kernels."""
    for dtype in dtypes:
        yield from _small_cases(dtype)
        yield from (case for case in attention_cases(dtype) if (case.D, case.heads) == (768, 12))
        yield from (case for case in info_nce_cases(dtype) if case.D == 512)
        for kernel in MATRIX_KERNELS:
            yield from (case for case in _classes(kernel, dtype) if case.D == 128 or case.tokens == 32)
            case = Case(kernel, dtype)
            yield from (replace(case, **flags) for flags in _FLAGS)
            yield Case(kernel, dtype, tile_width(dtype), several=False, pairs=True)
            if kernel == "forward":
                yield replace(case, index=0)


def attention_cases(dtype: torch.dtype) -> Iterator[Case]:
    """The kernels of the cross-attention difference: each width of heads with a mask, one width without."""
    for kernel in ATTENTION_KERNELS:
        for D, heads in HEADS if kernel != "gate" else [(768, 12), (40, 2)]:
            yield Case(kernel, dtype, 0, D, heads=heads)
        yield Case(kernel, dtype, 0, 768, masks=False, heads=12)


def info_nce_cases(dtype: torch.dtype) -> Iterator[Case]:
    """The kernels of InfoNCE that multiply, in both directions and of rows only, for each width of tiles."""
    for kernel in INFO_NCE_KERNELS:
        for D in (512, 32):
            yield from (Case(kernel, dtype, 0, D, columns=columns) for columns in (True, False))


def _classes(kernel: str, dtype: torch.dtype) -> Iterator[Case]:
    width = tile_width(dtype)
    for D in CHANNELS:
        for tokens in (8, 16, 32, 64, 128):
            if tokens <= width:
                yield Case(kernel, dtype, tokens, D)
        yield Case(kernel, dtype, width, D, chunked=True)


def _small_cases(dtype: torch.dtype) -> Iterator[Case]:
    for kernel in (name for names in SMALL_KERNELS.values() for name in names):
        for masks in (True, False):
            if masks or kernel in ("place", "normalize", "gate_backward", "merge"):
                yield from (Case(kernel, dtype, 32, D, masks=masks) for D in CHANNELS)
