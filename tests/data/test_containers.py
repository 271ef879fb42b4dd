"""Audio files whose headers are wrong or incomplete yield their true length or an error that names the file."""

import io
import resource
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from atk.data import AudioError, audio_info, load_audio, load_crop, mpeg, read_folder
from atk.data.audio import decode_audio

RATE = 16000
SECONDS = 6


def tone(seconds=SECONDS, rate=RATE, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * (440 + 220 * time) * time)] * channels, 1).astype(np.float32)


def encoded(audio, rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, **options)
    return buffer.getvalue()


def mp3(audio, rate=RATE, mode="VARIABLE"):
    buffer = io.BytesIO()
    with soundfile.SoundFile(
        buffer, "w", rate, audio.shape[1], format="MP3", bitrate_mode=mode, compression_level=0.3
    ) as file:
        file.write(audio)
    return buffer.getvalue()


def without_tag(data):
    """The MPEG frames without the one that holds the length."""
    stream, first = mpeg._first_frame(data)
    assert first == 0 and data[:64].count(b"Xing") + data[:64].count(b"Info") == 1
    return data[stream.sizes[data[2]] :]


def written(path, data):
    path.write_bytes(data)
    return path


def id3(size):
    frame = b"TXXX" + size.to_bytes(4, "big") + b"\0\0" + b"\0" * size
    return b"ID3\3\0\0" + bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0)) + frame


def burst(rate, channels):
    """Noise after silence, so that the first frames of a variable-bit-rate file say nothing about the others."""
    audio = np.random.default_rng(0).normal(0, 0.2, (SECONDS * rate, channels)).astype(np.float32)
    audio[: 2 * rate] = 0
    return audio


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 22050, 44100])  # MPEG 2.5, 2, and 1
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_without_a_length(tmp_path, mode, rate, channels):
    whole = mp3(burst(rate, channels), rate, mode)
    (tmp_path / "a.mp3").write_bytes(whole)
    (tmp_path / "b.mp3").write_bytes(id3(300) + without_tag(whole))
    expected = load_audio(tmp_path / "a.mp3", rate)
    assert len(expected) == SECONDS * rate
    # The encoder's delay and padding, which only the tag states.
    delay = audio_info(tmp_path / "b.mp3").frames - len(expected)
    assert 0 < delay < 3 * 1152
    got = load_audio(tmp_path / "b.mp3", rate)
    assert len(got) == audio_info(tmp_path / "b.mp3").frames
    assert torch.allclose(got[576:][: len(expected)], expected[: len(got) - 576], atol=1e-5)
    start = 4.5  # a crop long after the silence
    crop = load_audio(tmp_path / "b.mp3", rate, start, 0.5)
    first = round(start * rate)
    assert torch.allclose(crop, got[first : first + len(crop)], atol=1e-3)


def test_concatenated_mp3_files_are_one_clip(tmp_path):
    for name, between in (("a", b""), ("b", id3(200)), ("c", b"TAG" + bytes(125) + id3(50))):
        (tmp_path / f"{name}.mp3").write_bytes(mp3(tone(1)) + between + mp3(tone()))
        assert audio_info(tmp_path / f"{name}.mp3").seconds == pytest.approx(SECONDS + 1, abs=0.2)
        assert len(load_audio(tmp_path / f"{name}.mp3", RATE, SECONDS, 0.5)) == RATE // 2


def test_mp3_followed_by_tags_keeps_its_exact_length(tmp_path):
    (tmp_path / "a.mp3").write_bytes(mp3(tone()) + b"APETAGEX" + bytes(20000) + b"TAG" + bytes(125))
    assert audio_info(tmp_path / "a.mp3").frames == SECONDS * RATE


@pytest.mark.parametrize("name", ["a.mp3", "a.MP3", "a.wav", "a"])
def test_mp3_is_recognized_by_its_content(tmp_path, name):
    data = mp3(tone())
    (tmp_path / name).write_bytes(data)
    assert len(load_audio(tmp_path / name, RATE)) == SECONDS * RATE
    in_memory = load_crop("shard.tar:x.mp3", RATE, 2.0, 0.5, data)
    assert torch.allclose(in_memory, load_crop(tmp_path / name, RATE, 2.0, 0.5), atol=1e-3)


def test_a_tag_that_contradicts_the_data_is_not_believed(tmp_path):
    data = bytearray(mp3(tone()))
    at = data.index(b"Xing") if b"Xing" in data[:64] else data.index(b"Info")
    for frames in (1, 0, 2**31):
        data[at + 8 : at + 12] = frames.to_bytes(4, "big")
        (tmp_path / "a.mp3").write_bytes(data)
        assert audio_info(tmp_path / "a.mp3").seconds == pytest.approx(SECONDS, abs=0.2)


# Format, marker, offset from the marker to the size of the samples, and the length and byte order of that size.
SIZES = [
    ({"format": "WAV"}, b"data", 4, 4, "little"),
    ({"format": "WAV", "subtype": "FLOAT"}, b"data", 4, 4, "little"),
    ({"format": "WAV", "endian": "BIG"}, b"data", 4, 4, "big"),
    ({"format": "WAVEX"}, b"data", 4, 4, "little"),
    ({"format": "AIFF"}, b"SSND", 4, 4, "big"),
    ({"format": "CAF"}, b"data", 4, 8, "big"),
    ({"format": "W64"}, b"data", 16, 8, "little"),
    ({"format": "AU"}, b".snd", 8, 4, "big"),
]


@pytest.mark.parametrize(("options", "marker", "offset", "size_bytes", "order"), SIZES)
@pytest.mark.parametrize("stated", ["none", "2 GiB", "all bits"])
def test_unfinished_recordings_are_read_whole(tmp_path, options, marker, offset, size_bytes, order, stated):
    stated = {"none": 0, "2 GiB": 0x7FFFFFFF if size_bytes == 4 else 2**63 - 1, "all bits": -1}[stated]
    data = bytearray(encoded(tone(), **options))
    at = data.index(marker) + offset
    data[at : at + size_bytes] = (stated % (1 << 8 * size_bytes)).to_bytes(size_bytes, order)
    (tmp_path / "a.bin").write_bytes(data)
    whole = load_audio(written(tmp_path / "b.bin", encoded(tone(), **options)), RATE)
    got = load_audio(tmp_path / "a.bin", RATE)
    assert len(whole) == SECONDS * RATE
    # Some writers end a file with other chunks, which an unknown size covers too.
    assert 0 <= len(got) - len(whole) < 100 and torch.equal(got[: len(whole)], whole)
    assert torch.equal(load_audio(tmp_path / "a.bin", RATE, 5.0, 0.5), whole[5 * RATE :][: RATE // 2])


@pytest.mark.parametrize("stated", [1000, 40001])
def test_a_size_that_was_filled_in_too_early_loses_no_samples(tmp_path, stated):
    data = bytearray(encoded(tone(), format="WAV"))
    at = data.index(b"data") + 4
    data[at : at + 4] = stated.to_bytes(4, "little")
    assert audio_info(written(tmp_path / "a.wav", data)).seconds == SECONDS
    # A chunk that is really there is not read as samples, even if it is larger than they are.
    notes = b"LIST" + (50000).to_bytes(4, "little") + bytes(50000)
    finished = encoded(tone(1), format="WAV") + notes
    assert audio_info(written(tmp_path / "b.wav", finished)).seconds == 1
    empty = encoded(tone(0), format="WAV") + notes
    with pytest.raises(AudioError, match=r"c\.wav: contains no samples"):
        audio_info(written(tmp_path / "c.wav", empty))


@pytest.mark.parametrize(("options", "marker", "offset", "size_bytes", "order"), SIZES)
def test_truncated_recordings_are_refused_by_their_header(tmp_path, options, marker, offset, size_bytes, order):
    data = encoded(tone(), **options)
    with pytest.raises(
        AudioError, match=r"a\.bin: (truncated: the header says \d+ bytes of samples, the file has|not re)"
    ):
        audio_info(written(tmp_path / "a.bin", data[: len(data) // 2]))
    soundfile.write(tmp_path / "b.wav", tone(), RATE)
    (tmp_path / "a.bin").rename(tmp_path / "a.wav")
    assert [name for name, _ in read_folder(tmp_path).skipped] == ["a.wav"]


@pytest.mark.parametrize("size", [20, 70_000])
@pytest.mark.parametrize(
    "options", [{"format": "FLAC"}, {"format": "WAV"}, {"format": "OGG"}, {"format": "AIFF"}, {"format": "AU"}]
)
def test_a_tag_before_the_data_changes_nothing(tmp_path, options, size):
    data = encoded(tone(), **options)
    plain, tagged = written(tmp_path / "a.bin", data), written(tmp_path / "b.bin", id3(size) + data)
    assert audio_info(tagged) == audio_info(plain)
    for window in ((0.0, None), (2.0, 0.5)):
        assert torch.equal(load_audio(tagged, RATE, *window), load_audio(plain, RATE, *window))


@pytest.mark.parametrize("rate", [1, 4, 99, 1_000_001, 2_000_000_011])
def test_absurd_rates_are_refused(tmp_path, rate):
    data = bytearray(encoded(tone(), format="WAV"))
    data[24:28] = rate.to_bytes(4, "little")
    with pytest.raises(AudioError, match=rf"a\.wav: the header says {rate} Hz; sample rates from 100 to 1000000 Hz"):
        load_audio(written(tmp_path / "a.wav", data), RATE, 0.0, 0.1)


@pytest.mark.parametrize("rate", [100, 655_360, 999_983])
def test_unusual_rates_take_little_memory(tmp_path, rate):
    data = bytearray(encoded(tone(), format="WAV"))
    data[24:28] = rate.to_bytes(4, "little")
    path = written(tmp_path / "a.wav", data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for target in (RATE, 44100, 1_000_000):
        seconds = min(0.05, audio_info(path).seconds)
        assert len(load_audio(path, target, 0.0, seconds)) == pytest.approx(seconds * target, abs=2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def test_a_few_bytes_that_claim_to_be_hours_are_refused_with_little_memory(tmp_path):
    data = bytearray(encoded(tone(), format="FLAC"))
    field = int.from_bytes(data[18:26], "big")
    data[18:26] = (field >> 36 << 36 | (1 << 36) - 1).to_bytes(8, "big")  # the number of samples, in 36 bits
    path = written(tmp_path / "a.flac", data)
    tracemalloc.start()
    try:
        for read in (lambda: audio_info(path), lambda: load_audio(path, RATE)):
            with pytest.raises(AudioError, match=r"a\.flac: (damaged or )?truncated"):
                read()
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_long_silence_is_not_taken_for_a_false_claim(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(600 * RATE, np.int16), RATE)
    assert path.stat().st_size * 64 < 600 * RATE and audio_info(path).seconds == 600


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16", "NMS_ADPCM_32"])
def test_codecs_that_cannot_seek(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(3, 8000), 8000, subtype=subtype)
    assert not soundfile.SoundFile(path).seekable()
    whole = load_audio(path, 8000)
    assert len(whole) == pytest.approx(3 * 8000, abs=400)
    assert torch.equal(load_audio(path, 8000, 1.0, 0.5), whole[8000:12000])
    assert torch.equal(load_crop(path, 8000, 0.5, 1.0), whole[-4000:])


def vbri(data):
    """`data` with the length tag of Fraunhofer's encoder in place of LAME's."""
    stream, _ = mpeg._first_frame(data)
    frame = bytearray(data[: stream.sizes[data[2]]])
    frame[4:] = bytes(len(frame) - 4)
    frame[36:58] = b"VBRI" + bytes(6) + len(data).to_bytes(4, "big") + (200).to_bytes(4, "big") + bytes(4)
    return bytes(frame) + without_tag(data)


def test_other_length_tags_are_replaced(tmp_path):
    path = written(tmp_path / "a.mp3", vbri(mp3(burst(44100, 1), 44100)))
    assert audio_info(path).seconds == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("second", [0xFD, 0xFF])  # layers II and I
def test_mpeg_layers_without_length_tags_are_left_alone(tmp_path, second):
    size = 417 if second == 0xFD else 4 * (12 * 128000 // 44100)
    bits = 0x80 if second == 0xFD else 0x40  # 128 kbit/s
    frame = bytes([0xFF, second, bits, 0]) + bytes(size - 4)
    path = written(tmp_path / "a.mp3", frame * 100)
    assert audio_info(path).frames == soundfile.info(path).frames


@pytest.mark.parametrize(
    "tail",
    [
        b"LIST" + (4000).to_bytes(4, "little") + bytes(4000) + bytes(512),
        b"LIST" + (4000).to_bytes(4, "little") + bytes(4000) + b"TAG" + bytes(125),
        bytes(4000),
    ],
)
@pytest.mark.parametrize("options", [{}, {"subtype": "PCM_U8"}])
def test_what_follows_the_samples_is_not_read_as_samples(tmp_path, tail, options):
    data = encoded(tone(0.0557), format="WAV", **options)  # an odd number of bytes if a sample has 8 bits
    frames = soundfile.info(io.BytesIO(data)).frames
    assert audio_info(written(tmp_path / "a.wav", data + tail)).frames == frames
    if options:  # some writers forget the padding
        assert frames % 2 and audio_info(written(tmp_path / "a.wav", data[:-1] + tail)).frames == frames


def test_an_untagged_mp3_is_searched_only_once(tmp_path, monkeypatch):
    path = written(tmp_path / "a.mp3", without_tag(mp3(tone())))
    expected = audio_info(path)
    monkeypatch.setattr(mpeg, "_count", None)
    assert audio_info(path) == expected
    with pytest.raises(TypeError):
        audio_info(written(tmp_path / "a.mp3", without_tag(mp3(tone(2)))))


@pytest.mark.parametrize("subtype", ["GSM610", "NMS_ADPCM_32"])
def test_codecs_that_cannot_seek_are_decoded_to_their_end(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(70, 8000), 8000, subtype=subtype)
    assert decode_audio(tmp_path / "a.wav") == []
