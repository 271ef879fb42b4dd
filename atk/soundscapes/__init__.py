"""Captioned soundscapes with exact event times, synthesized or composed from recordings, as ordinary files."""

from atk.soundscapes.config import PRESETS, SoundscapeConfig
from atk.soundscapes.write import write_soundscapes

__all__ = ["PRESETS", "SoundscapeConfig", "write_soundscapes"]
