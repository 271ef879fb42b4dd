"""A contrastive model small enough for tests."""

from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP, ModelConfig
from atk.models.text import TextEncoderConfig

CONFIG = ModelConfig(
    dim=8,
    audio=AudioEncoderConfig(mel_bins=16, window=256, hop=160, channels=(4, 4, 4, 4), width=8, layers=1, heads=2),
    text=TextEncoderConfig(vocabulary=300, width=8, layers=1, heads=2),
)


def tiny_clap():
    return CLAP.create(CONFIG, ["a dog barks", "rain falls", "a bell rings"]).eval()
