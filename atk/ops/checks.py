"""Checks of what callers hand to the ops: each error names the argument, what came and what is wanted."""

from numbers import Real

import torch
from torch import Tensor

MOST_ROWS = 2**31 - 1  # cu_seqlens are int32, as everywhere
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def embeddings(name: str, value: Tensor, axes: str, like: tuple[str, Tensor] | None = None) -> None:
    """`value` is a floating tensor with the axes named in `axes` ("N, L, D"); dtype, device and width as in `like`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of shape [{axes}], got {type(value).__name__}")
    if value.dim() != axes.count(",") + 1:
        raise ValueError(f"{name} must have shape [{axes}], got {list(value.shape)}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 (or float64, reference only), got {value.dtype}")
    if value.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one channel (D >= 1), got shape {list(value.shape)}")
    if like is None:
        return
    other_name, other = like
    if value.shape[-1] != other.shape[-1]:
        raise ValueError(
            f"{name} and {other_name} must have the same width D, got {value.shape[-1]} and {other.shape[-1]}"
        )
    if value.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on one device, got {value.device} and {other.device}")
    if value.dtype != other.dtype and not _autocast_unites(value, other):
        raise TypeError(f"{name} and {other_name} must have the same dtype, got {value.dtype} and {other.dtype}")


def _autocast_unites(*values: Tensor) -> bool:
    device = values[0].device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return enabled and all(value.dtype != torch.float64 for value in values)


def mask(name: str, value: Tensor | None, of_name: str, of: Tensor) -> None:
    """`value` is None or a boolean tensor over the first two axes of `of`, on its device."""
    if value is None:
        return
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a boolean tensor, True = valid, got {kind}")
    if value.shape != of.shape[:2]:
        raise ValueError(
            f"{name} must have shape {list(of.shape[:2])}, the first two axes of {of_name}, got {list(value.shape)}"
        )
    if value.device != of.device:
        raise ValueError(f"{name} must be on the device of {of_name} ({of.device}), got {value.device}")


def padded(audio: Tensor, text: Tensor, audio_mask: Tensor | None, text_mask: Tensor | None) -> None:
    """Padded frames `[N_a, L_a, D]` and tokens `[N_t, L_t, D]` with their masks, as the max-mean ops take them."""
    embeddings("audio", audio, "N_a, L_a, D")
    embeddings("text", text, "N_t, L_t, D", like=("audio", audio))
    mask("audio_mask", audio_mask, "audio", audio)
    mask("text_mask", text_mask, "text", text)
    for name, value in (("audio", audio), ("text", text)):
        if value.shape[0] * value.shape[1] > MOST_ROWS:
            raise ValueError(f"{name} must have at most {MOST_ROWS} rows in all, got shape {list(value.shape)}")


def same_count(audio: Tensor, text: Tensor) -> None:
    """Clip i belongs to caption i."""
    if audio.shape[0] != text.shape[0]:
        raise ValueError(
            f"audio and text must hold the same number N of pairs, got {audio.shape[0]} and {text.shape[0]}"
        )


def scalar(name: str, value: Tensor | float) -> None:
    """`value` is a real number or a real tensor of one element."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"{name} must be a number or a real tensor of one element, got {value.dtype} {list(value.shape)}"
            )
    elif not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or a real tensor of one element, got {type(value).__name__}")


def positive(value: Tensor, audio: Tensor, text: Tensor) -> None:
    """`value` names the caption among `text` of every clip of `audio`; on a GPU what it holds is not looked at."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"positive must be an int64 tensor, got {kind}")
    if value.shape != audio.shape[:1]:
        raise ValueError(f"positive must have shape [{len(audio)}], one caption for each clip, got {list(value.shape)}")
    if value.device != audio.device:
        raise ValueError(f"positive must be on the device of audio ({audio.device}), got {value.device}")
    if value.device.type != "cpu" or torch.compiler.is_compiling() or len(value) == 0:
        return
    low, high = (int(end) for end in value.aminmax())
    if low < 0 or high >= len(text):
        raise ValueError(f"positive must lie within the {len(text)} rows of text, got {low} to {high}")


def cross_attention(
    source: Tensor, q: Tensor, k: Tensor, v: Tensor, out_weight: Tensor, out_bias: Tensor | None,
    key_mask: Tensor | None, num_heads: int,
) -> None:  # fmt: skip
    """Frames, queries, keys, values and the output projection, as the cross-attention difference takes them."""
    embeddings("source", source, "N, L_a, D")
    for name, value, axes in (("q", q, "N, L_a, D"), ("k", k, "N, L_ref, D"), ("v", v, "N, L_ref, D")):
        embeddings(name, value, axes, like=("source", source))
    same_shape("q", q, "source", source)
    same_shape("v", v, "k", k)
    same_batch("k", k, "source", source)
    width = source.shape[-1]
    for name, value, axes in (("out_weight", out_weight, "D, D"), ("out_bias", out_bias, "D")):
        if value is None and name == "out_bias":
            continue
        embeddings(name, value, axes, like=("source", source))
        if value.shape[0] != width:
            raise ValueError(f"{name} must have shape [{axes}] with D = {width}, got {list(value.shape)}")
    mask("key_mask", key_mask, "k", k)
    heads(num_heads, width)


def same_batch(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """`value` holds a reference for every clip of `other`."""
    if value.shape[0] != other.shape[0]:
        raise ValueError(
            f"{name} and {other_name} must hold the same number N of clips, got {value.shape[0]} and {other.shape[0]}"
        )


def same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """`value` is shaped as `other`."""
    if value.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {list(other.shape)}, got {list(value.shape)}")


def heads(num_heads: int, width: int) -> None:
    """`num_heads` divides the channels."""
    if isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1 or width % num_heads:
        raise ValueError(f"num_heads must be a whole number that divides D = {width}, got {num_heads}")


def cu_seqlens(name: str, value: Tensor, of_name: str, of: Tensor, longest: int | None) -> None:
    """`value` cuts the rows of `of` into sequences; what it holds is looked at unless `longest` is given."""
    if not isinstance(value, Tensor) or value.dtype != torch.int32:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an int32 tensor, got {kind}")
    if value.dim() != 1 or value.shape[0] == 0:
        raise ValueError(f"{name} must have shape [N + 1], got {list(value.shape)}")
    if value.device != of.device:
        raise ValueError(f"{name} must be on the device of {of_name} ({of.device}), got {value.device}")
    if longest is not None and longest < 0:
        raise ValueError(f"max_seqlen_{of_name} must be at least 0, got {longest}")
    if longest is None or (of.device.type == "cpu" and not torch.compiler.is_compiling()):
        cu_seqlens_values(of_name, value, of, longest)


def cu_seqlens_values(of_name: str, value: Tensor, of: Tensor, longest: int | None) -> None:
    """The numbers in `value` cut the rows of `of` into sequences of at most `longest`; waits for a GPU."""
    name, lengths = f"cu_seqlens_{of_name}", value.diff()
    first, last = int(value[0]), int(value[-1])
    if first != 0 or last != of.shape[0]:
        raise ValueError(f"{name} must run from 0 to the {of.shape[0]} rows of {of_name}, got {first} to {last}")
    if bool((lengths < 0).any()):
        raise ValueError(f"{name} must never decrease")
    if longest is not None and bool((lengths > longest).any()):
        raise ValueError(f"max_seqlen_{of_name} must be at least the longest, {int(lengths.max())}, got {longest}")


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def at_least(name: str, value: float, minimum: float) -> None:
    """`value` is a number of at least `minimum`."""
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
