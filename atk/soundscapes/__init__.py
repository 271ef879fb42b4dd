"""Synthetic captioned soundscapes with true event times, written as ordinary files."""

from .config import SoundscapeConfig
from .write import write_soundscapes

__all__ = ["SoundscapeConfig", "write_soundscapes"]
