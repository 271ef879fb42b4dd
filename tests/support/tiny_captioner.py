"""A captioner small enough for tests, and clips for it."""

import dataclasses

import torch

from atk.models.captioner import Captioner, CaptionerConfig
from atk.models.cnn14 import Cnn14Config
from atk.models.decoder import DecoderConfig

CAPTIONS = ["a low tone", "a high tone is heard", "wind, then two birds sing", "silence"]
TINY = CaptionerConfig(
    audio=Cnn14Config(channels=(4, 4, 8, 8, 8, 16)),
    decoder=DecoderConfig(width=32, layers=1, heads=2, vocabulary=400, max_tokens=20),
    heads=2,
)
LENGTHS = torch.tensor([32000, 20000, 27000, 32000])


def tiny(**changes):
    return Captioner.create(dataclasses.replace(TINY, **changes), CAPTIONS).eval()


def clips(lengths, samples=32000):
    """Noise `[..., samples]` with NaN after each of `lengths [...]`."""
    audio = torch.randn(*lengths.shape, samples)
    return audio.masked_fill(torch.arange(samples) >= lengths[..., None], float("nan"))
