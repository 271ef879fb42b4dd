"""Argument checks of the ops. Every error names the argument, what is required, and what was given."""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

MAX_ROWS = 2**31 - 1  # cu_seqlens are int32
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def embeddings(name: str, value: Tensor | None, axes: str, like: tuple[str, Tensor] | None = None) -> Tensor:
    """Return `value` after checking that it is a floating-point tensor with the axes in `axes`, such as "N, L, D".

    `like` is the name and value of another tensor, which must have the same dtype, device, and width D. Under
    autocast, the dtypes may differ.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape [{axes}], got {type(value).__name__}")
    if value.dim() != axes.count(",") + 1:
        raise ValueError(f"{name} must have shape [{axes}], got {list(value.shape)}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16, or float64, got {value.dtype}")
    if value.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one channel (D >= 1), got shape {list(value.shape)}")
    if like is None:
        return value
    other_name, other = like
    if value.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{name} and {other_name} must have the same width D, got {value.shape[-1]} and {other.shape[-1]}"
        )
    if value.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on the same device, got {value.device} and {other.device}")
    if value.dtype != other.dtype and not _autocast_casts(value, other):
        raise TypeError(f"{name} and {other_name} must have the same dtype, got {value.dtype} and {other.dtype}")
    return value


def _autocast_casts(*values: Tensor) -> bool:
    """Whether autocast is on and casts all `values`."""
    device = values[0].device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return enabled and all(value.dtype != torch.float64 for value in values)


def mask(name: str, value: Tensor | None, of_name: str, of: Tensor) -> None:
    """Check that `value` is None or a boolean tensor over the first two axes of `of`, on its device."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        raise TypeError(f"{name} must be a boolean tensor, True = valid, got {_dtype_or_type(value)}")
    if value.shape != of.shape[:2]:
        raise ValueError(
            f"{name} must have shape {list(of.shape[:2])}, the first two axes of {of_name}, got {list(value.shape)}"
        )
    if value.device != of.device:
        raise ValueError(f"{name} must be on the device of {of_name} ({of.device}), got {value.device}")


def _dtype_or_type(value: object) -> torch.dtype | str:
    return value.dtype if isinstance(value, Tensor) else type(value).__name__


def padded(audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None) -> None:
    """Check that padded frames `[N_a, L_a, D]`, tokens `[N_t, L_t, D]`, and their masks fit the max-mean ops."""
    embeddings("audio", audio, "N_a, L_a, D")
    embeddings("text", text, "N_t, L_t, D", like=("audio", audio))
    mask("audio_mask", audio_mask, "audio", audio)
    mask("text_mask", text_mask, "text", text)
    for name, value in (("audio", audio), ("text", text)):
        if value.shape[0] * value.shape[1] > MAX_ROWS:
            raise ValueError(f"{name} must have at most {MAX_ROWS} rows in total, got shape {list(value.shape)}")


def same_count(audio: Tensor, text: Tensor) -> None:
    """Check that there are as many clips as captions."""
    if audio.shape[0] != text.shape[0]:
        raise ValueError(
            f"audio and text must hold the same number N of pairs, got {audio.shape[0]} and {text.shape[0]}"
        )


def pairs(audio: Tensor, text: Tensor, *, allow_empty: bool = False) -> None:
    """There are as many clips as captions, at least one of each unless `allow_empty`."""
    same_count(audio, text)
    if audio.shape[0] == 0 and not allow_empty:
        raise ValueError("audio and text must hold at least one pair, got 0 and 0")


def scalar(name: str, value: Tensor | float) -> None:
    """Check that `value` is a real number or a real tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"{name} must be a number or a real tensor of one element, got {value.dtype} {list(value.shape)}"
            )
    elif not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a real tensor of one element, got {type(value).__name__}")


def positive(value: Tensor, audio: Tensor, text: Tensor, *, lowest: int = 0) -> None:
    """Check that `value` holds an int64 row index into `text`, at least `lowest`, for each clip.

    On a GPU, the indices are not read.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        raise TypeError(f"positive must be an int64 tensor, got {_dtype_or_type(value)}")
    if value.shape != audio.shape[:1]:
        raise ValueError(f"positive must have shape [{len(audio)}], one caption per clip, got {list(value.shape)}")
    if value.device != audio.device:
        raise ValueError(f"positive must be on the device of audio ({audio.device}), got {value.device}")
    if value.device.type != "cpu" or torch.compiler.is_compiling() or len(value) == 0:
        return
    low, high = (int(end) for end in value.aminmax())
    if low < lowest or high >= len(text):
        none = "" if lowest == 0 else f", or be {lowest} for none"
        raise ValueError(f"positive must lie within the {len(text)} rows of text{none}, got {low} to {high}")


def cross_attention(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> None:  # fmt: skip
    """Check that frames, queries, keys, values, and the output projection fit the cross-attention difference."""
    embeddings("source", source, "N, L_a, D")
    for name, value, axes in (("q", q, "N, L_a, D"), ("k", k, "N, L_ref, D"), ("v", v, "N, L_ref, D")):
        embeddings(name, value, axes, like=("source", source))
    same_shape("q", q, "source", source)
    same_shape("v", v, "k", k)
    same_batch("k", k, "source", source)
    _projection("out_weight", out_weight, "D, D", source)
    if out_bias is not None:
        _projection("out_bias", out_bias, "D", source)
    mask("key_mask", key_mask, "k", k)
    heads(num_heads, source.shape[-1])


def _projection(name: str, value: Tensor, axes: str, source: Tensor) -> None:
    embeddings(name, value, axes, like=("source", source))
    width = source.shape[-1]
    if value.shape[0] != width:
        raise ValueError(f"{name} must have shape [{axes}] with D = {width}, got {list(value.shape)}")


def same_batch(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that `value` and `other` have the same batch size."""
    if value.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} and {other_name} must hold the same number N of clips, got {value.shape[0]} and {other.shape[0]}"
        )


def same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Check that `value` and `other` have the same shape."""
    if value.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {list(other.shape)}, got {list(value.shape)}")


def heads(num_heads: int, width: int) -> None:
    """Check that `num_heads` is a positive integer that divides `width`."""
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must be a positive integer that divides D = {width}, got {num_heads}")


def cu_seqlens(name: str, value: Tensor, of_name: str, of: Tensor, max_seqlen: int | None) -> None:
    """Check that `value` splits the rows of `of` into sequences of at most `max_seqlen` rows.

    On a GPU, the values are read only if `max_seqlen` is None.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.int32:
        raise TypeError(f"{name} must be an int32 tensor, got {_dtype_or_type(value)}")
    if value.dim() != 1 or value.shape[0] == 0:
        raise ValueError(f"{name} must have shape [N + 1], got {list(value.shape)}")
    if value.device != of.device:
        raise ValueError(f"{name} must be on the device of {of_name} ({of.device}), got {value.device}")
    if max_seqlen is not None and max_seqlen < 0:
        raise ValueError(f"max_seqlen_{of_name} must be at least 0, got {max_seqlen}")
    if max_seqlen is None or (of.device.type == "cpu" and not torch.compiler.is_compiling()):
        cu_seqlens_values(of_name, value, of, max_seqlen)


def cu_seqlens_values(of_name: str, value: Tensor, of: Tensor, max_seqlen: int | None) -> None:
    """Check that the offsets in `value` split the rows of `of` into sequences of at most `max_seqlen` rows.

    Synchronizes with a GPU.
    """
    name = f"cu_seqlens_{of_name}"
    first, last = int(value[0]), int(value[-1])
    if first != 0 or last != of.shape[0]:
        raise ValueError(f"{name} must run from 0 to the {of.shape[0]} rows of {of_name}, got {first} to {last}")
    if len(value) == 1:
        return
    shortest, longest = (int(length) for length in value.diff().aminmax())
    if shortest < 0:
        raise ValueError(f"{name} must never decrease")
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(f"max_seqlen_{of_name} must be at least the longest sequence, {longest}, got {max_seqlen}")


def strings(name: str, value: object) -> None:
    """Check that `value` is a list (or another sequence) of strings, not a single string."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        given = repr(value) if isinstance(value, (str, bytes)) else f"a {type(value).__name__}"
        raise TypeError(f"{name} must be a list of strings, got {given}")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a list of strings, got {text!r} at index {index}")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{name} must be valid Unicode, got {text!r} at index {index}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def at_least(name: str, value: float, minimum: float) -> None:
    """Check that `value` is at least `minimum`; NaN is rejected."""
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
