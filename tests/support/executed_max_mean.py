"""Cases of max-mean similarity and aligned InfoNCE for ptx_machine."""

import torch
from support.executed_case import Case, Inputs, random, random_mask

import atk

LEAVES = ("audio", "text")
# Clips, captions, frames, tokens, channels.
SHAPES = {
    "32 channels": (3, 5, 70, 7, 32),
    "64 channels, several tiles": (2, 5, 40, 20, 64),
    "40 tokens": (2, 3, 40, 40, 64),  # winners are gathered on sm_80
    "chunked captions": (2, 2, 40, 150, 64),
}
# Executed for fewer dtypes and GPUs.
MORE_SHAPES = {
    "128 channels": (2, 4, 70, 30, 128),
    "192 channels": (2, 4, 40, 12, 192),
    "256 channels": (2, 3, 40, 20, 256),
    "300 tokens": (1, 2, 20, 300, 32),
    "33 channels": (3, 5, 40, 9, 33),
    "20 clips": (20, 3, 5, 7, 32),
    "a single row": (1, 1, 1, 1, 1),
}


def padded(*shape: int, masks: bool = True):
    """Makes audio and text for a shape as in SHAPES."""
    N_a, N_t, L_a, L_t, D = shape

    def inputs(dtype: torch.dtype) -> Inputs:
        values = {"audio": random(N_a, L_a, D, key="a", dtype=dtype), "text": random(N_t, L_t, D, key="t", dtype=dtype)}
        if masks:
            values["audio_mask"] = random_mask(N_a, L_a, key="frames")
            values["text_mask"] = random_mask(N_t, L_t, key="tokens")
        return values

    return inputs


def packed(frames: list[int], tokens: list[int], D: int):
    """Makes packed clips and captions of these lengths."""

    def inputs(dtype: torch.dtype) -> Inputs:
        values = {}
        for name, lengths in (("audio", frames), ("text", tokens)):
            values[name] = random(sum(lengths), D, key=name, dtype=dtype)
            values[f"cu_seqlens_{name}"] = torch.tensor([0, *lengths]).cumsum(0).int()
        return values

    return inputs


def similarity(backend, audio, text, audio_mask=None, text_mask=None, **options):
    return atk.max_mean_similarity(audio, text, audio_mask, text_mask, backend=backend, **options)


def pairs(backend, audio, text, audio_mask=None, text_mask=None, **options):
    return atk.max_mean_similarity_pairs(audio, text, audio_mask, text_mask, backend=backend, **options)


def varlen(backend, **inputs):
    return atk.max_mean_similarity_varlen(backend=backend, **inputs)


def normalized(direction: str = "audio"):
    """Similarity of normalized rows, which the kernels and therefore the reference round to the dtype of the input."""

    def op(backend, audio, text, audio_mask, text_mask, rounded=None):
        if backend != "reference":
            return similarity(backend, audio, text, audio_mask, text_mask, normalize=True, direction=direction)
        rows = []
        for x in (audio, text):
            norm = x.norm(dim=-1, keepdim=True)
            unit = torch.where(norm < 1e-12, 0.0, x / norm.clamp(min=1e-12))
            rows.append(unit + (unit.to(rounded).to(unit.dtype) - unit).detach())
        return similarity(backend, *rows, audio_mask, text_mask, direction=direction)

    return op


def rounded(inputs):
    """Tells `normalized` the dtype of the inputs before they are converted to float64."""
    return lambda dtype: inputs(dtype) | {"rounded": dtype}


def aligned(skip_below: float):
    def op(backend, audio, text, audio_mask, text_mask, scale):
        return atk.aligned_info_nce(audio, text, scale, audio_mask, text_mask, skip_below=skip_below, backend=backend)

    return op


def aligned_inputs(dtype: torch.dtype) -> Inputs:
    values = padded(4, 4, 40, 20, 64)(dtype)
    for name in ("audio", "text"):
        values[name] = torch.nn.functional.normalize(values[name].float(), dim=-1).to(dtype)
        values[f"{name}_mask"][[0, -1], 0] = True
    return values | {"scale": torch.tensor(20.0)}


def normalized_inputs(D: int):
    def inputs(dtype: torch.dtype) -> Inputs:
        values = padded(2, 2, 9, 3, D)(dtype)
        values["text"] += values["audio"][:, :3]  # cosines that are not near 0
        values["audio"][1, 3] = 0
        return values

    return rounded(inputs)


EVERY_CLASS = packed([70, 0, 3, 20], [3, 20, 9, 0, 33, 64, 5, 100], 64)
LONG = packed([40, 7], [20, 150, 0], 64)
# Winners are saved in all of these; the tests also recompute them.
SIMILARITY = [
    *(Case(f"max-mean, {name}", similarity, padded(*shape), LEAVES, everywhere=True) for name, shape in SHAPES.items()),
    *(
        Case(f"max-mean, {name}", similarity, padded(*shape, masks=shape[0] > 1), LEAVES)
        for name, shape in MORE_SHAPES.items()
    ),
    Case("max-mean, no masks", similarity, padded(3, 5, 70, 7, 32, masks=False), LEAVES),
    Case("max-mean, no masks, chunked", similarity, padded(2, 2, 40, 150, 64, masks=False), LEAVES),
    Case("max-mean, gradient mostly 0", similarity, padded(2, 5, 40, 20, 64), LEAVES, zeros=0.8),
    Case("max-mean, packed, every length class", varlen, EVERY_CLASS, LEAVES, everywhere=True),
    Case("max-mean, packed, chunked", varlen, LONG, LEAVES),
    Case("max-mean, packed, 1100 captions", varlen, packed([3], [1, 9, 2, 17] * 275, 32), LEAVES),
    Case("max-mean, pairs", pairs, padded(5, 5, 60, 20, 64), LEAVES, everywhere=True),
    Case("max-mean, pairs, chunked", pairs, padded(4, 4, 40, 150, 64), LEAVES),
]
COMPOSED = [
    Case("max-mean, both directions, normalized", normalized("both"), rounded(padded(2, 5, 40, 20, 64)), LEAVES),
    *(
        Case(f"max-mean, normalized, {D} channels", normalized(), normalized_inputs(D), LEAVES, everywhere=D == 100)
        for D in (100, 300, 1500)
    ),
    Case("aligned InfoNCE", aligned(0.0), aligned_inputs, (*LEAVES, "scale")),
    Case("aligned InfoNCE, pairs skipped", aligned(0.05), aligned_inputs, (*LEAVES, "scale"), everywhere=True),
]


def ties(tokens: int):
    """All tokens of a caption are equal; the first three of one caption are padding."""

    def inputs(dtype: torch.dtype) -> Inputs:
        values = padded(3, 4, 20, tokens, 32, masks=False)(dtype)
        values["text"] = values["text"][:, :1].repeat(1, tokens, 1)
        values["text_mask"] = torch.ones(4, tokens, dtype=torch.bool)
        values["text_mask"][1, :3] = False
        return values

    return inputs


def nonfinite(tokens: int):
    def inputs(dtype: torch.dtype) -> Inputs:
        values = padded(4, 3, 20, tokens, 32, masks=False)(dtype)
        values["audio"][0, 2, 3], values["audio"][1, 5] = float("nan"), float("inf")
        values["text"][1, tokens - 3, 0] = float("nan")
        return values

    return inputs


def minus_infinity(tokens: int):
    """All scores of a frame are -inf."""

    def inputs(dtype: torch.dtype) -> Inputs:
        values = padded(3, 4, 20, tokens, 32)(dtype)
        values["text"] = values["text"].abs() + 0.1
        values["audio"][:, 4] = float("-inf")
        return values

    return inputs


def poisoned(tokens: int):
    """NaN and infinities in the padding."""

    def inputs(dtype: torch.dtype) -> Inputs:
        values = padded(3, 4, 20, tokens, 32)(dtype)
        poison = torch.tensor([float("nan"), float("inf"), float("-inf")])[torch.arange(32) % 3].to(dtype)
        for name in ("audio", "text"):
            values[name] = torch.where(values[f"{name}_mask"][..., None], values[name], poison)
        return values

    return inputs


# Gradients that are not finite have no truth to compare with.
EDGES = [
    Case(f"max-mean, {name}, {tokens} tokens", similarity, inputs(tokens), leaves)
    for tokens in (9, 150)
    for name, inputs, leaves in (
        ("ties", ties, LEAVES),
        ("NaN and infinity", nonfinite, ()),
        ("minus infinity", minus_infinity, ()),
        ("poisoned padding", poisoned, LEAVES),
    )
]
