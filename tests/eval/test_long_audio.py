"""Frames of long recordings: seams between windows, times, and files that cannot be decoded."""

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from support.fake_model import FRAME, RATE, FakeModel
from support.tiny_clap import tiny_clap
from torch import nn

from atk.data import AudioError, Clip, EvalDataset
from atk.eval.embed import ALL_FILES, embed_all
from atk.eval.embedder import Embedder
from atk.eval.long_audio import FrameStream, joined
from atk.models.clap import AudioEmbedding

REACH = 3  # frames to each side that `Local` sees


class Local(FakeModel):
    """Frames depend on the audio of `REACH` frames to each side, with zeros outside the window."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, 1, (2 * REACH + 1) * FRAME, generator=generator))

    def embed_audio(self, audio, lengths):
        audio = F.pad(audio, (0, -audio.shape[1] % FRAME))
        frames = F.conv1d(F.pad(audio[:, None], (REACH * FRAME,) * 2), self.weight, stride=FRAME).transpose(1, 2)
        mask = torch.arange(frames.shape[1]) < -(-lengths // FRAME)[:, None]
        frames = F.normalize(frames, dim=-1)
        frames[~mask] = float("nan")
        return AudioEmbedding(frames[:, 0], frames, mask)


def noise(folder, seconds, name="a.wav", rate=RATE):
    path = folder / name
    wave = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(path, wave.astype(np.float32), rate, subtype="FLOAT")
    return path


def frames_of(path, seconds, context, model=None, **options):
    clips = [Clip("a.wav", path, (), soundfile.info(path).duration)]
    stream = FrameStream(model or Local(), clips, seconds, context, batch_size=2, on_error="raise", **options)
    return joined([part for _, part in stream.parts()])


@pytest.mark.parametrize("seconds", [0.03, 1.9, 2.0, 2.05, 3.4, 3.41, 7.77])
@pytest.mark.parametrize(("window", "context"), [(2.0, 0.3), (2.04, 0.35), (1.37, 0.6)])
def test_frames_do_not_depend_on_the_windows_if_the_context_covers_what_the_model_sees(
    tmp_path, seconds, window, context
):
    path = noise(tmp_path, seconds)
    whole = frames_of(path, 60.0, 0.0)
    cut = frames_of(path, window, context)
    torch.testing.assert_close(whole.times, (torch.arange(len(whole.times), dtype=torch.float64) + 0.5) * FRAME / RATE)
    torch.testing.assert_close(cut.times, whole.times)
    torch.testing.assert_close(cut.frames, whole.frames, rtol=0, atol=1e-5)


def test_with_less_context_only_the_frames_near_seams_change(tmp_path):
    path = noise(tmp_path, 5.0)
    whole, cut = frames_of(path, 60.0, 0.0), frames_of(path, 2.0, 0.1)  # windows start every 18 frames
    differs = (whole.frames - cut.frames).abs().amax(1) > 1e-4
    seams = torch.tensor([19, 37])
    assert torch.equal(differs, ((torch.arange(50)[:, None] + 0.5 - seams).abs() < REACH - 1).any(1))


def test_an_embedder_takes_files_and_waveforms_and_yields_parts(tmp_path):
    model = Embedder(tiny_clap(), 2.0)
    path = noise(tmp_path, 6.5, rate=16000)
    parts = list(model.iter_frames(path, batch_size=1))
    assert len(parts) > 3
    whole = model.frames(path, context_seconds=0.5)
    torch.testing.assert_close(joined(parts).frames, whole.frames, rtol=0, atol=1e-5)
    wave, rate = soundfile.read(path, dtype="float32")
    torch.testing.assert_close(model.frames(wave, rate).frames, whole.frames, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"less than half of clip_seconds \(2\) by a frame \(0.04 s\), got 1"):
        model.frames(path, context_seconds=1.0)
    with pytest.raises(AudioError, match="no such file"):
        model.frames(tmp_path / "b.wav")


def test_other_clips_go_on_after_one_that_cannot_be_decoded(tmp_path):
    paths = [noise(tmp_path, 5.0, f"{name}.wav") for name in "abc"]
    content = bytearray(paths[1].read_bytes())
    content[-RATE * 4 * 2 : -RATE * 4] = np.full(RATE, np.nan, dtype=np.float32).tobytes()
    paths[1].write_bytes(content)
    stream = FrameStream(Local(), [Clip(path.name, path, (), 5.0) for path in paths], 2.0, 0.3, batch_size=2)
    parts: dict[str, list] = {}
    for clip, part in stream.parts():
        parts.setdefault(clip.file_name, []).append(part)
    assert [name for name, _ in stream.skipped] == ["b.wav"] and "NaN" in stream.skipped[0][1]
    assert torch.equal(joined(parts["a.wav"]).frames, joined(parts["c.wav"]).frames)
    assert len(joined(parts["c.wav"]).times) == 50


def test_windows_of_a_stride(tmp_path):
    clips = [Clip("a.wav", noise(tmp_path, 5.0), (), 5.0), Clip("b.wav", noise(tmp_path, 1.0, "b.wav"), (), 1.0)]
    windows = EvalDataset(clips, RATE, 2.0, stride=1.5)
    assert [windows.windows(0), windows.windows(1), len(windows)] == [3, 1, 4]
    assert [len(windows[index]["audio"]) / RATE for index in range(4)] == [2, 2, 2, 1]
    assert [windows.start(0, index) for index in range(3)] == [0, 1.5, 3.0]
    for options in ({"stride": 2.5}, {"stride": 0}, {"stride": 1.0, "chunks": 2}):
        with pytest.raises(ValueError, match=r"stride must be in \(0, clip_seconds\], without chunks"):
            EvalDataset(clips, RATE, 2.0, **options)


def test_frames_of_a_folder_are_those_of_consecutive_windows_without_context(tmp_path):
    noise(tmp_path, 5.0)
    model = tiny_clap().eval()
    [(_, expected)] = embed_all(model, tmp_path, [], frames=ALL_FILES, clip_seconds=2.0, batch_size=4, workers=0)
    got = frames_of(tmp_path / "a.wav", 2.0, 0.0, model)
    torch.testing.assert_close(got.frames, expected.frames, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.times.float(), expected.times)
