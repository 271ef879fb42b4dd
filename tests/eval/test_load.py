"""atk.load: every source, every form of audio and text, and embeddings that depend on nothing else."""

import subprocess
import sys
from functools import cache

import pytest
import soundfile
import torch
from support.sources import SECONDS, SOURCES
from support.tiny_captioner import tiny as tiny_captioner

import atk
from atk.data import AudioError

TEXTS = ["a dog barks", "rain falls", "a bell"]


@pytest.fixture(scope="module")
def open_source(tmp_path_factory):
    """Writes a source once, and loads it once with the same options."""

    @cache
    def written(name):
        return SOURCES[name](tmp_path_factory.mktemp(name))

    @cache
    def load(name, **options):
        source, tokenizer = written(name)
        return atk.load(source, device="cpu", tokenizer=tokenizer, **options)

    return load


def wave(seconds, rate=16000, seed=0):
    return 0.1 * torch.randn(int(seconds * rate), generator=torch.Generator().manual_seed(seed))


def write(folder, **seconds):
    paths = []
    for seed, (name, length) in enumerate(seconds.items()):
        paths.append(folder / f"{name}.wav")
        soundfile.write(paths[-1], wave(length, seed=seed).numpy(), 16000, subtype="FLOAT")
    return paths


@pytest.mark.parametrize("name", SOURCES)
def test_embeddings_depend_only_on_the_file(open_source, tmp_path, name):
    """Not on the batch, the order, or the length of other files; and a waveform is embedded like its file."""
    model = open_source(name)
    paths = write(tmp_path, a=1.3, b=0.2, c=2.1, d=0.01)
    expected = torch.cat([model.embed_audio(path) for path in paths])
    assert expected.shape == (4, model.dim) and expected.norm(dim=1).allclose(torch.ones(4))
    for batch_size in (1, 3, 32):
        got = model.embed_audio(paths[::-1], batch_size=batch_size).flip(0)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    waves = [wave(1.3), str(paths[1]), wave(2.1, seed=2).numpy(), wave(0.01, seed=3).double()]
    torch.testing.assert_close(model.embed_audio(waves, 16000), expected, rtol=0, atol=1e-5)
    texts = torch.cat([model.embed_text(text) for text in TEXTS])
    torch.testing.assert_close(model.embed_text(TEXTS[::-1], batch_size=2).flip(0), texts, rtol=0, atol=1e-5)
    assert model.clip_seconds == SECONDS[name]


@pytest.mark.parametrize("name", ["run", "laion", "msclap"])
def test_frames_and_tokens(open_source, tmp_path, name):
    model = open_source(name)
    paths = write(tmp_path, a=1.3, b=0.2)
    clips, captions = model.embed_audio(paths, frames=True), model.embed_text(TEXTS, tokens=True)
    for clip, pooled, seconds in zip(clips, model.embed_audio(paths), (1.3, 0.2), strict=True):
        assert torch.equal(clip.pooled, pooled) and clip.frames.shape == (len(clip.times), model.dim)
        assert (clip.times.diff() > 0).all() and clip.times[-1] < max(seconds, model.frame_seconds)
    for caption, pooled, text in zip(captions, model.embed_text(TEXTS), TEXTS, strict=True):
        assert torch.equal(caption.pooled, pooled) and caption.tokens.shape == (len(caption.words), model.dim)
        assert "".join(caption.words).replace(" ", "") == text.replace(" ", "")
    cosine = torch.stack([clip.pooled for clip in clips]) @ model.embed_text(TEXTS).T
    best = [[(clip.frames @ text.tokens.T).amax(1).mean() for text in captions] for clip in clips]
    torch.testing.assert_close(model.similarity(paths, TEXTS), cosine, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.similarity(clips, captions, score="max_mean"), torch.tensor(best))
    torch.testing.assert_close(model.similarity(paths, captions, score="both"), (cosine + torch.tensor(best)) / 2)
    with pytest.raises(ValueError, match="score must be one of 'global', 'max_mean', 'both', got 'mean'"):
        model.similarity(clips, captions, score="mean")


def test_waveforms_of_equal_length_and_of_other_rates(open_source):
    model = open_source("saved")
    batch = torch.stack([wave(0.5), wave(0.5, seed=1)])
    assert torch.equal(model.embed_audio(batch), model.embed_audio([batch[0], batch[1].numpy()]))
    assert torch.equal(model.embed_audio(batch[0]), model.embed_audio([batch[0]]))
    tone = torch.sin(torch.arange(48000) * 2 * torch.pi * 440 / 48000) / 2
    low = torch.sin(torch.arange(16000) * 2 * torch.pi * 440 / 16000) / 2
    assert (model.embed_audio(tone, 48000) @ model.embed_audio(low).T).item() > 0.99


def test_long_clips(open_source, tmp_path):
    paths = write(tmp_path, long=25, short=2)
    ways = {way: open_source("fused", long_clips=way).embed_audio(paths) for way in ("windows", "crop", "fusion")}
    for way, vectors in ways.items():
        torch.testing.assert_close(vectors[1], ways["windows"][1], rtol=0, atol=1e-5)
        assert way == "windows" or not torch.allclose(vectors[0], ways["windows"][0], atol=1e-4)
    model = open_source("fused", long_clips="fusion")
    torch.testing.assert_close(model.embed_audio(paths[0]), ways["fusion"][:1], rtol=0, atol=1e-5)
    assert model.similarity(paths, TEXTS, score="max_mean").shape == (2, 3)
    with pytest.raises(ValueError, match="frames: they have times only if long clips are embedded in windows"):
        model.embed_audio(paths, frames=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("saved", {"long_clips": "crop"}, "long_clips: this model takes clips of any length whole, got 'crop'"),
        ("laion", {"long_clips": "fusion"}, "for a model without feature fusion, got 'fusion'"),
        ("laion", {"long_clips": "start"}, "long_clips must be one of 'windows', 'crop', 'fusion', got 'start'"),
        ("laion", {"long_clips": "crop", "clip_seconds": 3.0}, "clip_seconds: only windows have a length, got 3.0"),
    ],
)
def test_settings_that_do_not_fit(open_source, name, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, **options)


def test_half_precision(open_source, tmp_path):
    paths = write(tmp_path, a=1.3, b=0.2)
    half = open_source("laion", dtype=torch.bfloat16).embed_audio(paths)
    assert half.dtype == torch.float32 and (half * open_source("laion").embed_audio(paths)).sum(1).min() > 0.99


def test_audio_that_cannot_be_used(open_source, tmp_path):
    model = open_source("saved")
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    for audio, error, message in (
        (tmp_path / "bad.wav", AudioError, r"bad\.wav: not readable as audio"),
        (tmp_path / "none.wav", AudioError, r"none\.wav: no such file"),
        ([wave(1), torch.tensor([0.1, float("nan")])], AudioError, r"audio\[1\]: contains NaN"),
        ([wave(1), torch.empty(0)], AudioError, r"audio\[1\]: contains no samples"),
        ([wave(1), torch.ones(9, dtype=torch.int16)], TypeError, r"audio\[1\] must be floating-point .*int16"),
        (
            torch.ones(2, 3, 4),
            ValueError,
            r"audio\[0\] must be a waveform of shape \[S\], got \[3, 4\]",
        ),
        ([None], TypeError, r"audio\[0\] must be a path or a waveform, got NoneType"),
        ([], ValueError, "the number of clips must be at least 1, got 0"),
    ):
        with pytest.raises(error, match=message):
            model.embed_audio(audio)
    for texts, error in (([], ValueError), ([1], TypeError)):
        with pytest.raises(error):
            model.embed_text(texts)


def test_sources_without_a_model(tmp_path):
    tiny_captioner().save_pretrained(tmp_path / "captioner")
    with pytest.raises(ValueError, match="holds a Captioner, which embeds no text; a CLAP is needed"):
        atk.load(tmp_path / "captioner")
    with pytest.raises(ValueError, match="holds no model"):
        atk.load(tmp_path)
    with pytest.raises(ValueError, match="device: 'tpu' is not available here"):
        atk.load(tmp_path / "captioner", device="tpu")


@pytest.mark.slow
def test_training_code_is_not_imported(tmp_path):
    source, _ = SOURCES["saved"](tmp_path)
    code = (
        "import sys, torch, atk; assert 'transformers' not in sys.modules and 'atk.eval' not in sys.modules;"
        "model = atk.load(sys.argv[1], device='cpu');"
        "model.similarity(torch.zeros(16000), ['rain'], score='both');"
        "unwanted = ('atk.train', 'atk.cli', 'atk.plan', 'atk.bench', 'atk.soundscapes', 'jsonargparse', 'matplotlib');"
        "print([name for name in sys.modules if name.startswith(unwanted)])"
    )
    done = subprocess.run([sys.executable, "-c", code, source], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
