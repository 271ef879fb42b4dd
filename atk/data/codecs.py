"""Which library decodes a file: libsndfile if it can, else FFmpeg through PyAV, if that is installed."""

import importlib.util
import os
import re
from functools import lru_cache
from typing import Any

from atk.data import mpeg
from atk.data.containers import Content, Unusable
from atk.data.ffmpeg import CodecFile
from atk.extras import install_command, optional_imports

with optional_imports:
    import soundfile

# Suffixes of what FFmpeg reads and libsndfile does not.
CODEC_SUFFIXES = (
    *(".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".webm", ".weba", ".mka", ".mkv", ".wma", ".avi", ".flv", ".ac3"),
    *(".eac3", ".amr", ".ape", ".wv", ".mpc", ".tta", ".tak", ".dsf", ".dff", ".ra", ".spx"),
)
_SIGNATURE = re.compile(  # how such files start
    rb"....(?:ftyp|moov|mdat|wide)|\x1aE\xdf\xa3|0&\xb2u\x8ef\xcf\x11|\xff[\xf0\xf1\xf8\xf9]|\x0bw|#!AMR|MAC |wvpk"
    rb"|MP\+|MPCK|TTA1|tBaK|DSD |FRM8|\.RMF|\.ra\xfd|RIFF....AVI |FLV\x01",
    re.DOTALL,
)
_SIGNATURE_BYTES = 16


@lru_cache(maxsize=1)
def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def needs_av() -> str:
    """Why a file with one of `CODEC_SUFFIXES` is left out while PyAV is not installed."""
    return f"this format needs av; {install_command('av')}"


def open_sound(source: Any, content: Content) -> "soundfile.SoundFile | CodecFile":
    """Open an audio file with the library that reads it.

    Args:
        source: path as bytes, or a file-like object.
        content: the same file.

    Raises:
        Unusable: neither library reads it, or it needs PyAV, which is not installed.
    """
    start = content.read_at(mpeg.id3_size(content.head[:10]), _SIGNATURE_BYTES)
    if _SIGNATURE.match(start):
        if not has_av():
            raise Unusable(needs_av())
        return _codec_file(source, content)
    try:
        return soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
    except TypeError:  # soundfile treats the suffix .raw as headerless
        raise Unusable("not readable as audio (headerless)") from None
    if has_av():
        try:
            return _codec_file(source, content)
        except Unusable:
            pass  # libsndfile's reason is the more common one
    raise Unusable(f"not readable as audio ({reason})")


def _codec_file(source: Any, content: Content) -> CodecFile:
    return CodecFile(os.fsdecode(source) if isinstance(source, bytes) else source, content.identity)
