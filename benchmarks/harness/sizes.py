"""The size table: shapes people have, each with its reason, and sweeps of one axis for the plots."""

from typing import NamedTuple


class Pairs(NamedTuple):
    """Every clip against every caption, frame by token."""

    clips: int
    captions: int
    frames: int
    tokens: int
    channels: int


class Vectors(NamedTuple):
    """Every clip against every caption, one vector each."""

    pairs: int
    channels: int


class Attention(NamedTuple):
    """Each input against its reference, both of so many frames."""

    batch: int
    frames: int
    channels: int
    heads: int


class Batch(NamedTuple):
    """Waveforms at 16 kHz with captions, through both encoders."""

    pairs: int
    seconds: float


_PAIRS = {
    "tiny": Pairs(5, 6, 9, 6, 8),  # every provider in a test
    "thesis": Pairs(64, 64, 250, 32, 128),  # batch 64, width 128, 10 s at 25 frames a second
    "batch_128": Pairs(128, 128, 250, 32, 128),  # twice that
    "colbert": Pairs(32, 512, 32, 300, 128),  # 32 queries of 32 tokens, 512 documents of up to 300
    "long_audio": Pairs(32, 32, 1500, 32, 128),  # a minute
    "clap_256": Pairs(256, 256, 250, 32, 512),  # CLAP's width, the batch of its fine-tuning
    "wide": Pairs(512, 512, 250, 32, 768),  # BERT's width, no projection
    "clap_1024": Pairs(1024, 1024, 250, 32, 128),  # pre-training on one device
    "clap_4096": Pairs(4096, 4096, 250, 32, 128),  # pre-training, all devices together
}
_VECTORS = {
    "tiny": Vectors(40, 16),  # every provider in a test
    "clap_256": Vectors(256, 512),  # CLAP's width, the batch of its fine-tuning
    "clap_1024": Vectors(1024, 512),  # pre-training on one device
    "clap_4096": Vectors(4096, 512),  # pre-training, all devices together
    "batch_8192": Vectors(8192, 512),  # 256 MiB of logits in float32
    "batch_16384": Vectors(16384, 512),  # 1 GiB of them
}
_ATTENTION = {
    "tiny": Attention(3, 20, 16, 2),  # every provider in a test
    "thesis": Attention(32, 93, 768, 12),  # 30 s of CNN14 frames, the width of BART
    "long_audio": Attention(4, 2048, 256, 4),  # 80 s at 25 frames a second, where the weights of the attention count
}
_BATCH = {
    "tiny": Batch(3, 0.5),  # every provider in a test
    "short_clips": Batch(16, 4.0),  # for the short run
    "thesis": Batch(64, 9.91),  # its batch and its crop
    "clap_256": Batch(256, 9.91),  # the batch of CLAP's fine-tuning
}
NAMED = {
    "max_mean_similarity": _PAIRS,
    "aligned_info_nce": {
        name: _PAIRS[name]._replace(captions=_PAIRS[name].clips) for name in _PAIRS if name != "colbert"
    },
    "info_nce": _VECTORS,
    "cross_attention_difference": _ATTENTION,
    "aligned_train_step": _BATCH,
}
LARGE = {  # minutes a call on a CPU: only where they are asked for
    "max_mean_similarity": {"wide", "clap_1024", "clap_4096"},
    "aligned_info_nce": {"wide", "clap_1024", "clap_4096"},
    "info_nce": set(),
    "cross_attention_difference": set(),
    "aligned_train_step": {"clap_256"},
}
SHORT = {  # under five minutes on two cores, most of them for torch.compile
    "max_mean_similarity": ("thesis", "batch", "length", "width"),
    "aligned_info_nce": ("thesis",),
    "info_nce": ("clap_4096", "batch", "width"),
    "cross_attention_difference": ("thesis", "length"),
    "aligned_train_step": ("short_clips",),
}
SHORT_KINDS = {"aligned_info_nce": ("ragged_step",)}  # where not all of an op's
AXES = ("batch", "length", "width")


def sweep(op: str, axis: str, short: bool = False) -> list[tuple]:
    """Shapes that differ in one axis alone; empty where the op has no such axis."""
    least = 0 if short else 1  # the full sweep goes one doubling further
    if op in ("max_mean_similarity", "aligned_info_nce"):
        base = Pairs(32, 32, 125, 16, 128)
        return {
            "batch": [base._replace(clips=n, captions=n) for n in _doublings(16, 3 + 2 * least)],
            "length": [base._replace(frames=n) for n in _doublings(125, 3 + least)],
            "width": [base._replace(channels=n) for n in _doublings(64, 3 + least)],
        }[axis]
    if op == "info_nce":
        base = Vectors(1024, 512)
        return {
            "batch": [base._replace(pairs=n) for n in _doublings(512, 3 + 2 * least)],
            "width": [base._replace(channels=n) for n in _doublings(128, 3 + least)],
        }.get(axis, [])
    if op == "cross_attention_difference":
        base = Attention(8, 128, 256, 4)
        return {
            "batch": [base._replace(batch=n) for n in _doublings(4, 3 + least)],
            "length": [base._replace(frames=n) for n in _doublings(128, 3 + 2 * least)],
            "width": [base._replace(channels=n) for n in _doublings(128, 3 + least)],
        }[axis]
    base = Batch(8, 2.0)
    return {
        "batch": [base._replace(pairs=n) for n in _doublings(4, 3 + 2 * least)],
        "length": [base._replace(seconds=float(n)) for n in _doublings(1, 3 + least)],
    }.get(axis, [])


def names(op: str, device: str) -> list[str]:
    """The sizes and axes that are measured where none is named."""
    left_out = {"tiny"} | (LARGE[op] if device == "cpu" else set())
    return [name for name in NAMED[op] if name not in left_out] + [axis for axis in AXES if sweep(op, axis)]


def shapes(op: str, name: str, short: bool = False) -> list[tuple]:
    """The shapes of a size, or of an axis; empty where the op has no such."""
    if name in AXES:
        return sweep(op, name, short)
    return [NAMED[op][name]] if name in NAMED[op] else []


def _doublings(first: int, count: int) -> list[int]:
    return [first << k for k in range(count)]
