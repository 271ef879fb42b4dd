"""Which library decodes a file: libsndfile if it can, else FFmpeg through PyAV, if that is installed."""

import contextlib
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
# How files start, by FFmpeg's name of their format. FFmpeg itself also recognizes playlists, which open other files.
_FFMPEG_ALONE = {
    "mov": rb"....(?:ftyp|moov|mdat|wide)",
    "matroska": rb"\x1aE\xdf\xa3",
    "asf": rb"0&\xb2u\x8ef\xcf\x11",
    "avi": rb"RIFF....AVI ",
    "flv": rb"FLV\x01",
    "aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    "ac3": rb"\x0bw...[\x00-\x57]",
    "eac3": rb"\x0bw...[\x58-\x87]",
    "amr": rb"#!AMR",
    "ape": rb"MAC ",
    "wv": rb"wvpk",
    "mpc": rb"MP\+",
    "mpc8": rb"MPCK",
    "tta": rb"TTA1",
    "tak": rb"tBaK",
    "dsf": rb"DSD ",
    "iff": rb"FRM8",
    "rm": rb"\.RMF|\.ra\xfd",
}
_LIBSNDFILE_FIRST = {
    "wav": rb"RIFF....WAVE|RF64",
    "ogg": rb"OggS",
    "flac": rb"fLaC",
    "aiff": rb"FORM....AIF[FC]",
    "caf": rb"caff",
    "au": rb"\.snd",
}
_SIGNATURE_BYTES = 16


def _any_of(signatures: dict[str, bytes]) -> re.Pattern[bytes]:
    """A pattern whose last group is the name of the format."""
    return re.compile(b"|".join(b"(?P<%b>%b)" % (name.encode(), s) for name, s in signatures.items()), re.DOTALL)


_ALONE, _FIRST = _any_of(_FFMPEG_ALONE), _any_of(_LIBSNDFILE_FIRST)


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
    if match := _ALONE.match(start):
        if not has_av():
            raise Unusable(needs_av())
        return _codec_file(source, match, content)
    try:
        return soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
    except TypeError:  # soundfile treats the suffix .raw as headerless
        raise Unusable("not readable as audio (headerless)") from None
    if has_av() and (match := _FIRST.match(start)):
        with contextlib.suppress(Unusable):  # libsndfile's reason says more
            return _codec_file(source, match, content)
    raise Unusable(f"not readable as audio ({reason})")


def _codec_file(source: Any, match: re.Match[bytes], content: Content) -> CodecFile:
    name = match.lastgroup or ""  # never empty
    return CodecFile(os.fsdecode(source) if isinstance(source, bytes) else source, name, content.identity)
