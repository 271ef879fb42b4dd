"""Synthetic captioned soundscapes with true event times, written as ordinary files."""

from .config import PRESETS, SoundscapeConfig
from .write import write_soundscapes

__all__ = ["PRESETS", "SoundscapeConfig", "write_soundscapes"]
