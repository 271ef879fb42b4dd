"""Audio that libsndfile does not read: every window is the same part of the whole file, to the sample."""

import os

import numpy as np
import pytest
import soundfile
import torch
from support.encode import encode, sweep
from support.unlabeled_cases import tar

from atk.data import AudioError, UnlabeledAudio, audio_info, codecs, list_folder, load_audio, load_crop, read_data
from atk.data.codecs import open_sound
from atk.data.containers import Content
from atk.data.ffmpeg import CodecFile
from atk.data.published.tree import Tree

pytest.importorskip("av", exc_type=ImportError)
SECONDS = 5.0
PLAIN = {"aac_pns": "0"}  # no noise in place of noise-like bands, which differs from one decode to the next
CASES = {  # name: (encoder, rate, channels, options)
    "a.m4a": ("aac", 44100, 2, PLAIN),
    "a.mp4": ("aac", 48000, 6, PLAIN),
    "fragments.mp4": ("aac", 44100, 1, PLAIN),
    "a.aac": ("aac", 22050, 1, PLAIN),
    "a.mkv": ("aac", 44100, 1, PLAIN),
    "a.flv": ("aac", 44100, 1, PLAIN),
    "lossless.m4a": ("alac", 44100, 2, {}),
    "a.webm": ("libopus", 48000, 2, {}),
    "opus.mp4": ("libopus", 48000, 1, {}),
    "mp3.mka": ("libmp3lame", 44100, 1, {}),
    "flac.mkv": ("flac", 44100, 1, {}),
    "a.wma": ("wmav2", 44100, 1, {"b": "96000"}),
    "a.ac3": ("ac3", 48000, 1, {}),
    "odd.ac3": ("ac3", 44100, 1, {}),  # 44.1 kHz: its timestamps drift
    "a.wv": ("wavpack", 44100, 1, {}),
    "a.mov": ("pcm_s16le", 44100, 2, {}),
    "a.avi": ("libmp3lame", 44100, 1, {}),
    "pcm.avi": ("pcm_u8", 8000, 1, {}),
    "float.mov": ("pcm_f32le", 8000, 1, {}),
}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
NOISE = {"a.ac3": 0.02}  # its decoder adds noise, which depends on where decoding starts
NO_DELAY = ("a.m4a", "a.mkv", "lossless.m4a", "a.webm", "opus.mp4", "mp3.mka", "flac.mkv", "a.mov", "float.mov")


def write(path, **more):
    """Encode a `sweep` as the case with the name of the file says."""
    encoder, rate, channels, options = CASES[path.name]
    return encode(path, encoder, sweep(SECONDS, rate, channels), rate, options=options, **more)


@pytest.mark.parametrize("name", CASES)
def test_a_window_is_that_of_the_whole_file(tmp_path, name):
    path = write(tmp_path / name, muxing=FRAGMENTS if name.startswith("fragments") else {})
    rate = CASES[name][1]
    tolerance = NOISE.get(name, 1e-6)
    whole = load_audio(path, rate)
    info = audio_info(path)
    assert (info.sample_rate, info.channels, info.frames) == (rate, CASES[name][2], len(whole))
    assert abs(info.seconds - SECONDS) < 0.1
    for start in (0, 1, 700, rate, 2 * rate + 1, 4 * rate - 77, len(whole) - 1500):
        window = load_audio(path, rate, start / rate, 1500 / rate)
        assert torch.allclose(window, whole[start : start + 1500], atol=tolerance)
    with open_sound(
        os.fsencode(path), Content(path.read_bytes(), path.stat().st_size)
    ) as file:  # one open file, back and forth
        assert file.seek(10**9) == file.frames and not len(file.read(1))
        for start in (3 * rate, 100, 2 * rate, 2 * rate + 5):
            assert file.seek(start) == start
            mono = file.read(999, always_2d=True).mean(1)
            assert np.allclose(mono, whole[start : start + 999], atol=tolerance)
    if name in NO_DELAY:
        original = torch.from_numpy(sweep(SECONDS, rate, CASES[name][2]).mean(1))
        assert len(original) <= len(whole) <= len(original) + 1024
        inner = slice(rate, 4 * rate)
        assert torch.nn.functional.cosine_similarity(whole[inner], original[inner], dim=0) > 0.995


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"format": "FLAC", "subtype": "PCM_24"}, 0.0),
        ({"format": "FLAC"}, 0.0),
        ({"format": "MP3"}, 1e-5),
        ({"format": "OGG", "subtype": "VORBIS"}, 1e-5),
        ({"format": "OGG", "subtype": "OPUS"}, 5e-3),  # another decoder
        ({"format": "WAV", "subtype": "FLOAT"}, 0.0),
        ({"format": "WAV", "subtype": "PCM_U8"}, 0.0),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_both_libraries_decode_the_same(tmp_path, options, tolerance, channels):
    path = tmp_path / "a"
    soundfile.write(path, sweep(3.0, 48000, channels), 48000, **options)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0]
    with CodecFile(str(path), options["format"].lower()) as file:
        assert (file.frames, file.samplerate, file.channels) == (len(expected), 48000, channels)
        assert np.abs(file.read(10**9, always_2d=True) - expected).max() <= tolerance
        file.seek(100_001)
        assert np.abs(file.read(500, always_2d=True) - expected[100_001:100_501]).max() <= tolerance


@pytest.mark.parametrize("name", ["a.wav", "a.MP3", "it's 1:30 é", os.fsdecode(b"\xff\xfe.m4a"), "http:a.m4a"])
def test_the_content_decides_not_the_name(tmp_path, name):
    source = write(tmp_path / "a.m4a")
    (tmp_path / name).write_bytes(source.read_bytes())
    expected = load_audio(source, 16000, 1.0, 2.0)
    assert torch.equal(load_audio(tmp_path / name, 16000, 1.0, 2.0), expected)
    assert torch.equal(load_crop("shard.tar:a.m4a", 16000, 2.0, 1 / 3, source.read_bytes()), expected)


def test_lost_packets_become_silence_and_keep_what_follows_in_place(tmp_path):
    whole = load_audio(write(tmp_path / "a.mkv"), 44100)
    lossy = load_audio(write(tmp_path / "a.mkv", lose=range(60, 80)), 44100)
    lost = slice(60 * 1024, 80 * 1024)  # packet 0 holds the encoder's delay
    assert len(lossy) == len(whole) and not lossy[62 * 1024 : 78 * 1024].any()
    kept = torch.ones(len(whole), dtype=torch.bool)
    kept[lost.start - 2048 : lost.stop + 2048] = False
    assert torch.allclose(lossy[kept], whole[kept], atol=1e-5)
    assert torch.allclose(load_audio(tmp_path / "a.mkv", 44100, 1.0, 3.0), lossy[44100 : 4 * 44100], atol=1e-6)


def test_audio_that_starts_late_is_read_from_its_start(tmp_path):
    for name in ("a.m4a", "a.mkv"):
        expected = load_audio(write(tmp_path / name), 44100)
        delayed = load_audio(write(tmp_path / name, delay=2 * 44100), 44100)
        assert len(delayed) == pytest.approx(len(expected), abs=2048)
        assert torch.allclose(load_audio(tmp_path / name, 44100, 3.0, 0.1), delayed[3 * 44100 :][:4410], atol=1e-6)


def test_the_sound_of_a_video(tmp_path):
    import av

    with av.open(str(tmp_path / "v.mp4"), "w") as file:
        video, sound = file.add_stream("mpeg4", rate=25), file.add_stream("aac", rate=16000, layout="mono")
        video.width = video.height = 32
        for index in range(50):
            picture = av.VideoFrame.from_ndarray(np.full((32, 32, 3), index, np.uint8), format="rgb24")
            file.mux(video.encode(picture))
        tone = av.AudioFrame.from_ndarray(sweep(2.0, 16000).T.copy(), format="fltp", layout="mono")
        tone.sample_rate = 16000
        for frame in av.AudioResampler("fltp", "mono", 16000, frame_size=1024).resample(tone):
            file.mux(sound.encode(frame))
        file.mux(video.encode(None))
        file.mux(sound.encode(None))
    assert audio_info(tmp_path / "v.mp4").seconds == pytest.approx(2.0, abs=0.1)
    with av.open(str(tmp_path / "silent.mp4"), "w") as file:
        video = file.add_stream("mpeg4", rate=25)
        video.width = video.height = 32
        file.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        file.mux(video.encode(None))
    with pytest.raises(AudioError, match=r"silent\.mp4: contains no audio$"):
        audio_info(tmp_path / "silent.mp4")


def test_damage_is_an_error_that_names_the_file(tmp_path):
    content = write(tmp_path / "a.m4a", muxing={"movflags": "faststart"}).read_bytes()
    (tmp_path / "a.m4a").write_bytes(content[: len(content) * 6 // 10])
    assert len(load_audio(tmp_path / "a.m4a", 44100, 1.0, 0.5)) == 22050
    with pytest.raises(AudioError, match=r"a\.m4a: (damaged or .* fails after|truncated: ends at) 2\.9"):
        load_audio(tmp_path / "a.m4a", 44100, 1.0)
    (tmp_path / "a.m4a").write_bytes(content[:-40000] + bytes(20000) + content[-20000:])
    with pytest.raises(AudioError, match=r"a\.m4a: damaged or truncated: decoding fails after 2\.5"):
        load_audio(tmp_path / "a.m4a", 44100)
    for junk in (b"\x1aE\xdf\xa3" + b"junk" * 500, b"\0\0\0\x20ftypM4A " + bytes(500)):
        (tmp_path / "b.webm").write_bytes(junk)
        with pytest.raises(AudioError, match=r"b\.webm: not readable as audio \(Invalid data"):
            audio_info(tmp_path / "b.webm")


def test_a_playlist_opens_no_other_file(tmp_path):
    write(tmp_path / "a.m4a")
    (tmp_path / "list.m4a").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\na.m4a\n#EXT-X-ENDLIST\n")
    with pytest.raises(AudioError, match="not readable as audio"):
        audio_info(tmp_path / "list.m4a")


def test_without_pyav_the_file_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path / "a.m4a")
    soundfile.write(tmp_path / "b.wav", sweep(1.0, 8000), 8000)
    assert [path.name for path in list_folder(tmp_path)[0]] == ["a.m4a", "b.wav"]
    assert len(UnlabeledAudio.scan([tmp_path])) == 2
    monkeypatch.setattr(codecs, "has_av", lambda: False)
    reason = "this format needs av; pip install 'audio-text-kernels[codecs]'"
    with pytest.raises(AudioError) as caught:
        audio_info(tmp_path / "a.m4a")
    assert caught.value.reason == reason
    paths, left_out = list_folder(tmp_path)
    assert [path.name for path in paths] == ["b.wav"] and [error.reason for error in left_out] == [reason]
    assert UnlabeledAudio.scan([tmp_path]).skipped == [(str(tmp_path), f"1 .m4a file left out: {reason}")]


def test_shards_and_published_sets_use_these_formats_once_pyav_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("ATK_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "a.m4a")
    content = (tmp_path / "a.m4a").read_bytes()
    shard = tar(tmp_path / "0.tar", [("a.m4a", content), ("a.txt", b"x"), ("b.mid", b"y"), ("b.txt", b"z")])
    reason = "this format needs av; pip install 'audio-text-kernels[codecs]'"
    with monkeypatch.context() as patch:
        patch.setattr(codecs, "has_av", lambda: False)
        with pytest.raises(ValueError, match=r"no usable clip; skipped 2: .*a\.m4a \(this format needs av"):
            read_data(shard, "train")
        assert Tree(tmp_path, ()).locate(["a"]).fault == reason
    split = read_data(shard, "train")  # the index of the first attempt does not count
    assert [clip.seconds for clip in split.clips] == [SECONDS] and len(split.skipped) == 1
    assert Tree(tmp_path, ()).locate(["a"]).path == str(tmp_path / "a.m4a")
    (tmp_path / "z").mkdir()
    soundfile.write(tmp_path / "z" / "a.wav", sweep(1.0, 8000), 8000)
    tree = Tree(tmp_path, ())
    assert tree.locate(["a"]).path == str(tmp_path / "z" / "a.wav") and not tree.ambiguous
