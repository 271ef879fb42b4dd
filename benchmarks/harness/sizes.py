"""The benchmarked shapes, each with its reason, and sweeps along one axis for the plots."""

from collections.abc import Mapping, Sequence
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
    """Each input against its reference, both with the same number of frames."""

    batch: int
    frames: int
    channels: int
    heads: int


class Batch(NamedTuple):
    """Waveforms at 16 kHz with captions, through both encoders."""

    pairs: int
    seconds: float


Shape = Pairs | Vectors | Attention | Batch

PAIRS = {
    "tiny": Pairs(5, 6, 9, 6, 8),  # runs every provider in a test
    "thesis": Pairs(64, 64, 250, 32, 128),  # batch 64, width 128, 10 s at 25 frames per second
    "batch_128": Pairs(128, 128, 250, 32, 128),  # twice that batch
    "colbert": Pairs(32, 512, 32, 300, 128),  # 32 queries of 32 tokens, 512 documents of up to 300
    "long_audio": Pairs(32, 32, 1500, 32, 128),  # one minute
    "clap_256": Pairs(256, 256, 250, 32, 512),  # CLAP's width and fine-tuning batch
    "wide": Pairs(512, 512, 250, 32, 768),  # BERT's width, no projection
    "clap_1024": Pairs(1024, 1024, 250, 32, 128),  # pretraining on one device
    "clap_4096": Pairs(4096, 4096, 250, 32, 128),  # pretraining, the batch of all devices
}
_EXTREMES = {  # where the work per call, clip, or caption is so small that other costs can dominate
    "one_pair": Pairs(1, 1, 250, 32, 128),
    "one_token": Pairs(128, 128, 250, 1, 128),  # one vector per caption
    "one_query": Pairs(1, 100_000, 32, 8, 128),  # search in a large collection
    "short_frames": Pairs(10_000, 64, 5, 32, 128),  # many clips of 5 frames
    "one_hour": Pairs(1, 10, 90_000, 32, 128),  # at 25 frames per second
}
_VECTORS = {
    "tiny": Vectors(40, 16),  # runs every provider in a test
    "clap_256": Vectors(256, 512),  # CLAP's width and fine-tuning batch
    "clap_1024": Vectors(1024, 512),  # pretraining on one device
    "clap_4096": Vectors(4096, 512),  # pretraining, the batch of all devices
    "batch_8192": Vectors(8192, 512),  # 256 MiB of logits in float32
    "batch_16384": Vectors(16384, 512),  # 1 GiB of logits
}
_ATTENTION = {
    "tiny": Attention(3, 20, 16, 2),  # runs every provider in a test
    "thesis": Attention(32, 93, 768, 12),  # 30 s of CNN14 frames, the width of BART
    "long_audio": Attention(4, 2048, 256, 4),  # 80 s at 25 frames per second; the attention weights dominate
}
_BATCH = {
    "tiny": Batch(3, 0.5),  # runs every provider in a test
    "short_clips": Batch(16, 4.0),  # for the short run
    "thesis": Batch(64, 9.91),  # the thesis's batch and crop
    "clap_256": Batch(256, 9.91),  # CLAP's fine-tuning batch
}
NAMED: Mapping[str, Mapping[str, Shape]] = {
    "max_mean_similarity": PAIRS | _EXTREMES,
    "aligned_info_nce": {name: PAIRS[name]._replace(captions=PAIRS[name].clips) for name in PAIRS if name != "colbert"},
    "info_nce": _VECTORS,
    "sigmoid_loss": _VECTORS,
    "cross_attention_difference": _ATTENTION,
    "aligned_train_step": _BATCH,
}
LARGE = {  # minutes per call on a CPU, so timed there only on request
    "max_mean_similarity": {"wide", "clap_1024", "clap_4096"},
    "aligned_info_nce": {"wide", "clap_1024", "clap_4096"},
    "aligned_train_step": {"clap_256"},
}
SHORT = {  # under five minutes on two cores, most of it in torch.compile
    "max_mean_similarity": ("thesis", "batch", "length", "width"),
    "aligned_info_nce": ("thesis",),
    "info_nce": ("clap_4096", "batch", "width"),
    "sigmoid_loss": ("clap_4096",),
    "cross_attention_difference": ("thesis", "length"),
    "aligned_train_step": ("short_clips",),
}
SHORT_MODES = {"aligned_info_nce": ("ragged_step",)}  # ops that run only some modes in the short run
AXES = ("batch", "length", "width")


def sweep(op: str, axis: str, short: bool = False) -> Sequence[Shape]:
    """Shapes that differ along one axis only; empty if the op does not have this axis."""
    extra = 0 if short else 1  # the full sweep goes one doubling further, along some axes two
    if op in ("max_mean_similarity", "aligned_info_nce"):
        pairs = Pairs(32, 32, 125, 16, 128)
        return {
            "batch": [pairs._replace(clips=n, captions=n) for n in _doublings(16, 3 + 2 * extra)],
            "length": [pairs._replace(frames=n) for n in _doublings(125, 3 + extra)],
            "width": [pairs._replace(channels=n) for n in _doublings(64, 3 + extra)],
        }[axis]
    if op in ("info_nce", "sigmoid_loss"):
        vectors = Vectors(1024, 512)
        return {
            "batch": [vectors._replace(pairs=n) for n in _doublings(512, 3 + 2 * extra)],
            "width": [vectors._replace(channels=n) for n in _doublings(128, 3 + extra)],
        }.get(axis, [])
    if op == "cross_attention_difference":
        attention = Attention(8, 128, 256, 4)
        return {
            "batch": [attention._replace(batch=n) for n in _doublings(4, 3 + extra)],
            "length": [attention._replace(frames=n) for n in _doublings(128, 3 + 2 * extra)],
            "width": [attention._replace(channels=n) for n in _doublings(128, 3 + extra)],
        }[axis]
    if op == "aligned_train_step":
        batch = Batch(8, 2.0)
        return {
            "batch": [batch._replace(pairs=n) for n in _doublings(4, 3 + 2 * extra)],
            "length": [batch._replace(seconds=float(n)) for n in _doublings(1, 3 + extra)],
        }.get(axis, [])
    return []


def names(op: str, device: str) -> list[str]:
    """The sizes and axes that are measured by default."""
    left_out = {"tiny"} | (LARGE.get(op, set()) if device == "cpu" else set())
    return [name for name in NAMED[op] if name not in left_out] + [axis for axis in AXES if sweep(op, axis)]


def shapes(op: str, name: str, short: bool = False) -> Sequence[Shape]:
    """The shapes of a size or an axis; empty if the op does not have it."""
    if name in AXES:
        return sweep(op, name, short)
    return [NAMED[op][name]] if name in NAMED[op] else []


def _doublings(first: int, count: int) -> list[int]:
    return [first << k for k in range(count)]
