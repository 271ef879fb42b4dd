"""CNN14: the published architecture and checkpoints, and invariance to padding."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from atk.models.cnn14 import FRAME_STRIDE, Cnn14, Cnn14Config

TINY = Cnn14Config(channels=(4, 6, 8, 8, 10, 12))


def slaney_filters(config):
    """`librosa.filters.mel(sr, n_fft, n_mels, fmin, fmax)` in float64: Slaney's scale, area-normalized."""
    step, knee, log_step = 200 / 3, 1000, np.log(6.4) / 27

    def to_mel(hertz):
        return hertz / step if hertz < knee else knee / step + np.log(hertz / knee) / log_step

    def to_hertz(mel):
        return np.where(mel < knee / step, mel * step, knee * np.exp(log_step * (mel - knee / step)))

    edges = to_hertz(np.linspace(to_mel(config.fmin), to_mel(config.fmax), config.mel_bins + 2))
    bins = np.linspace(0, config.sample_rate / 2, config.window // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])  # [window // 2 + 1, mel_bins]


def published_state(config):
    """A checkpoint with the published names and shapes, and random weights."""
    sizes = (1, *config.channels)
    bins = config.window // 2 + 1
    state = {}
    for part in ("real", "imag"):
        state[f"spectrogram_extractor.stft.conv_{part}.weight"] = torch.randn(bins, 1, config.window)
    state["logmel_extractor.melW"] = torch.from_numpy(slaney_filters(config)).float()
    norms = {"bn0": config.mel_bins}
    for i in range(1, 7):
        inputs, outputs = sizes[i - 1], sizes[i]
        block = f"conv_block{i}"
        state[f"{block}.conv1.weight"] = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
        state[f"{block}.conv2.weight"] = torch.randn(outputs, outputs, 3, 3) / (3 * outputs**0.5)
        norms |= {f"{block}.bn1": outputs, f"{block}.bn2": outputs}
    for name, size in norms.items():
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(size) + 0.5, torch.randn(size) * 0.3
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(size) * 0.3, torch.rand(size) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    state["bn0.running_mean"], state["bn0.running_var"] = torch.full((64,), -25.0), torch.full((64,), 200.0)
    for name, outputs in (("fc1", sizes[-1]), ("fc_audioset", 527)):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(outputs, sizes[-1]), torch.randn(outputs)
    return state


def published_log_mel(filters, config, audio):
    """The published front end for clips of equal length, reimplemented in float64: `[N, T, mel]`."""
    padded = F.pad(audio.double()[:, None], (config.window // 2,) * 2, mode="reflect")[:, 0]
    phase = torch.arange(config.window, dtype=torch.float64) / config.window
    frames = padded.unfold(1, config.window, config.hop) * (0.5 - 0.5 * torch.cos(2 * torch.pi * phase))
    return 10 * torch.log10((torch.fft.rfft(frames).abs() ** 2 @ filters.double()).clamp(min=1e-10))


def published_features(state, config, audio):
    """The published forward pass in evaluation mode for clips of equal length, reimplemented in float64."""
    state = {name: value.double() for name, value in state.items()}
    x = published_log_mel(state["logmel_extractor.melW"], config, audio)

    def norm(x, name):
        values = [state[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")]
        return (x - values[0]) / torch.sqrt(values[1] + 1e-5) * values[2] + values[3]

    x = norm(x.transpose(1, 2)[..., None], "bn0").permute(0, 3, 2, 1)
    for block in range(1, 7):
        for layer in (1, 2):
            x = F.conv2d(x, state[f"conv_block{block}.conv{layer}.weight"], padding=1)
            x = F.relu(norm(x, f"conv_block{block}.bn{layer}"))
        if block < 6:
            x = F.avg_pool2d(x, 2)
    return x.mean(3).transpose(1, 2)


def saved(tmp_path, state, **changes):
    path = tmp_path / "Cnn14.pth"
    torch.save({"iteration": 1, "model": state}, path)
    return dataclasses.replace(TINY, pretrained=str(path), **changes)


@pytest.mark.parametrize("seconds", [5.0, 3.33])
@pytest.mark.parametrize("rate", [16000, 32000])
def test_a_published_checkpoint_gives_the_published_features(tmp_path, rate, seconds):
    config = dataclasses.replace(Cnn14Config.published(rate), channels=TINY.channels)
    state = published_state(config)
    torch.save({"model": state}, tmp_path / "Cnn14.pth")
    encoder = Cnn14.create(dataclasses.replace(config, pretrained=str(tmp_path / "Cnn14.pth"))).eval()
    audio = torch.randn(2, int(seconds * rate)) * 0.1
    with torch.no_grad():
        features, mask = encoder(audio, torch.full((2,), audio.shape[1]))
    expected = published_features(state, config, audio)
    assert mask.all() and features.shape == expected.shape == (2, (1 + audio.shape[1] // config.hop) // 32, 12)
    assert expected.std() > 0.01
    torch.testing.assert_close(features.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("config", [Cnn14Config.published(32000), Cnn14Config.published(16000), Cnn14Config()])
def test_mel_filters_are_librosas(config):
    small = dataclasses.replace(config, channels=TINY.channels)
    expected = torch.from_numpy(slaney_filters(config))
    torch.testing.assert_close(
        Cnn14(small).log_mel.mel_scale.fb.double(), expected, rtol=0, atol=2e-4 * float(expected.max())
    )


def test_log_mel_reflects_every_clip_at_its_own_ends():
    log_mel = Cnn14(TINY).log_mel
    filters = torch.from_numpy(slaney_filters(TINY))
    lengths = torch.tensor([16000, 15999, 9001, 12160, 5000])
    audio = torch.randn(5, 16000) * (torch.arange(16000) < lengths[:, None])
    mel = log_mel(audio, lengths)
    assert mel.shape == (5, 101, 64)
    for i, length in enumerate(lengths.tolist()):
        expected = published_log_mel(filters, TINY, audio[i : i + 1, :length])[0]
        torch.testing.assert_close(mel[i, : len(expected)].double(), expected, rtol=0, atol=0.02)  # dB


def test_padding_a_clip_changes_nothing(tmp_path):
    encoder = Cnn14.create(saved(tmp_path, published_state(TINY))).eval()
    lengths = torch.tensor([48000, 33333, 40123, 47999, 5000, 1, FRAME_STRIDE * TINY.hop])
    audio = torch.randn(len(lengths), 48000)
    audio[torch.arange(48000) >= lengths[:, None]] = float("nan")
    with torch.no_grad():
        features, mask = encoder(audio, lengths)
        assert features.isfinite().all()
        for i, length in enumerate(lengths.tolist()):
            alone, alone_mask = encoder(audio[i : i + 1, :length], lengths[i : i + 1])
            valid = int(mask[i].sum())
            assert alone_mask.all() and alone_mask.shape[1] == valid == max(1, (1 + length // TINY.hop) // FRAME_STRIDE)
            torch.testing.assert_close(alone[0], features[i, :valid], rtol=1e-4, atol=1e-5)


def test_batch_statistics_and_gradients_ignore_padding():
    lengths = torch.full((3,), 20000)
    audio = torch.randn(3, 20000)
    runs = []
    for padding in (0, 30000):
        torch.manual_seed(1)
        encoder = Cnn14(dataclasses.replace(TINY, dropout=0.0)).train()
        features, mask = encoder(F.pad(audio, (0, padding)), lengths)
        features[mask].square().sum().backward()
        gradients = {name: value.grad for name, value in encoder.named_parameters()}
        runs.append((features[mask], dict(encoder.named_buffers()), gradients))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-3, atol=1e-3)
    assert all(gradient.abs().max() > 0 for gradient in runs[0][2].values())


def test_dropout_follows_every_block():
    encoder, calls = Cnn14(TINY).train(), []
    encoder.dropout.register_forward_hook(lambda module, inputs, output: calls.append((output == 0).float().mean()))
    encoder(torch.randn(1, 80000), torch.tensor([80000]))
    assert len(calls) == 6 and encoder.dropout.p == 0.2 and all(share > 0.1 for share in calls)


@pytest.mark.slow
def test_the_published_sizes():
    config = Cnn14Config.published()
    assert (config.window, config.hop, config.fmax, config.channels[-1]) == (1024, 320, 14000, 2048)
    classifier = 2048 * 2048 + 2048 + 2048 * 527 + 527  # fc1 and fc_audioset, which are omitted
    assert sum(value.numel() for value in Cnn14(config).parameters()) + classifier == 80_753_615  # as published


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "conv_block3.bn1.weight"), "conv_block3.bn1.weight is missing"),
        (lambda state: state | {"att_block.bias": torch.zeros(1)}, "att_block.bias is not part of CNN14"),
        (
            lambda state: state | {"bn0.bias": torch.zeros(32)},
            r"bn0.bias has shape \[32\], but the configuration needs \[64\]",
        ),
        (lambda state: state | {"logmel_extractor.melW": torch.rand(257, 64)}, "melW differs from the mel filters"),
        (lambda state: {"a": torch.zeros(1)}, "does not match the configuration: bn0.weight is missing; .* more$"),
        (lambda state: [torch.zeros(1)], "cannot read weights from"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path, change, message):
    config = saved(tmp_path, change(published_state(TINY)))
    with pytest.raises(ValueError, match=message) as error:
        Cnn14.create(config)
    assert str(error.value).startswith("audio.pretrained: ") and "\n" not in str(error.value)


def test_batch_norm_counters_may_be_missing(tmp_path):
    state = published_state(TINY)
    full = Cnn14.create(saved(tmp_path, state)).state_dict()
    bare = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    again = Cnn14.create(saved(tmp_path, bare)).state_dict()
    assert all(torch.equal(full[name], again[name]) for name in full if not name.endswith("num_batches_tracked"))


def test_a_file_that_is_not_a_checkpoint(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("not weights")
    with pytest.raises(ValueError, match=r"audio.pretrained: cannot read weights from .*notes.pth"):
        Cnn14.create(dataclasses.replace(TINY, pretrained=str(path)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Cnn14Config(mel_bins=40), "mel_bins must be a positive multiple of 32, got 40"),
        (lambda: Cnn14Config(hop=600), "window must be even and hop in 1..window"),
        (lambda: Cnn14Config(fmax=9000), "fmin < fmax <= sample_rate / 2 .8000 Hz., got 50 and 9000"),
        (lambda: Cnn14Config(channels=(1, 2, 3)), "channels must have six positive entries"),
        (lambda: Cnn14Config(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (lambda: Cnn14Config.published(44100), "sample_rate must be one of 32000, 16000, 8000 Hz, got 44100"),
        (
            lambda: Cnn14.create(Cnn14Config(pretrained="/no/such.pth")),
            "audio.pretrained: no such file: /no/such.pth",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_any_sample_rate_and_window_can_be_trained_from_scratch():
    """DCASE's front end: 44.1 kHz, 40 ms windows every 20 ms, 64 bands; a frame covers 32 hops."""
    config = Cnn14Config(44100, 64, 1764, 882, 0.0, 22050.0, channels=(4, 4, 4, 4, 4, 8))
    features, mask = Cnn14(config).eval()(torch.randn(1, 10 * 44100), torch.tensor([10 * 44100]))
    assert features.shape == (1, 15, 8) and mask.all() and features.isfinite().all()
