"""The Music Tagging Transformer: its network, its statistics in training, and the longest clip."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from support.tiny_clap import CONFIG

from atk.models.audio import AudioEncoderConfig
from atk.models.clap import CLAP
from atk.models.music_tagging import MusicTaggingTransformer

TINY = dataclasses.replace(CONFIG.audio, type="music-tagging-transformer", hop=80, channels=(4, 4, 6, 6), layers=2)


def encoder():
    made = MusicTaggingTransformer(TINY)
    with torch.no_grad():  # statistics and affine maps that matter
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return made.eval()


def normalized(norm, x):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)


def published(net, mel):
    """The network of the publication, for one clip `[T, mel_bins]` in dB: channels first, mel before time."""
    x = normalized(net.input_norm, mel.T[None, None])

    def convolve(conv, x):
        return F.conv2d(x, conv.weight.transpose(2, 3), padding=1)

    for block in net.convs:
        y = normalized(block.first_norm, convolve(block.first, x)).relu()
        y = normalized(block.second_norm, convolve(block.second, y))
        if block.shortcut is not None:
            x = normalized(block.shortcut_norm, convolve(block.shortcut, x))
        x = F.max_pool2d((x + y).relu(), 2)
    assert [block.shortcut is None for block in net.convs] == [False, True, False, True]
    x = net.project(x.permute(0, 3, 2, 1).flatten(2))
    x = torch.cat([net.cls.expand(1, 1, -1), x], 1)
    x = x + net.positions[: x.shape[1]]
    heads, width = TINY.heads, TINY.width
    for layer in net.transformer.layers:
        assert layer.self_attn.in_proj_bias is None and layer.self_attn.dropout == 0
        y = layer.norm1(x) @ layer.self_attn.in_proj_weight.T
        q, k, v = (part.view(1, -1, heads, width // heads).transpose(1, 2) for part in y.chunk(3, -1))
        weights = (q @ k.transpose(2, 3) * (width // heads) ** -0.5).softmax(-1)
        x = x + layer.self_attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
    x = net.transformer.norm(x)
    return x[:, 0], x[:, 1:]


def test_it_is_the_published_network():
    net = encoder()
    audio = 0.1 * torch.randn(1, 16000)
    mel, frames = net.log_mel(audio, torch.tensor([16000]))
    torch.testing.assert_close(mel, 10 * net.log_mel.power(F.pad(audio, (88, 88))).clamp(min=1e-10).log10())
    assert frames.tolist() == [200]
    pooled, features, mask = net(audio, torch.tensor([16000]))
    for actual, expected in zip((pooled, features), published(net, mel[0]), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert mask.shape == (1, 200 // 16) and mask.all()
    assert net.frame_seconds == pytest.approx(16 * 80 / 16000)


def test_the_sizes_of_ttmr_give_its_number_of_weights():
    sizes = AudioEncoderConfig(
        "music-tagging-transformer", mel_bins=128, hop=160, channels=(128,) * 4, width=256, heads=8
    )
    weights = sum(weight.numel() for weight in MusicTaggingTransformer(sizes).parameters())
    convolutions = 9 * 128 * (2 * 1 + 7 * 128) + 2 * 128 * 9 + 2  # with norms of their outputs and of the input
    layer = 4 * 256**2 + 256 + 8 * 256**2 + 4 * 256 + 256 + 4 * 256  # attention, feed-forward, norms
    assert weights == convolutions + 8 * 128 * 256 + 256 + 513 * 256 + 256 + 4 * layer + 2 * 256


def test_statistics_are_those_of_valid_frames():
    lengths = torch.tensor([16000, 7000])
    audio = 0.1 * torch.randn(2, 16000)
    audio[1, 7000:] = 0
    net = MusicTaggingTransformer(TINY).train()
    net(audio, lengths)
    mel, frames = net.log_mel(audio, lengths)
    valid = torch.cat([mel[row, :count] for row, count in enumerate(frames.tolist())])
    momentum = net.input_norm.momentum
    torch.testing.assert_close(net.input_norm.running_mean, momentum * valid.mean()[None])
    torch.testing.assert_close(net.input_norm.running_var, 1 - momentum + momentum * valid.var()[None])
    # What a batch is padded with does not matter, also in training.
    net = encoder().train()
    net.dropout.eval()
    net.transformer.eval()
    expected, _, _ = net(audio, lengths)
    torch.testing.assert_close(net(F.pad(audio, (0, 4000)), lengths)[0], expected, rtol=1e-4, atol=1e-4)


def test_longer_clips_are_cut_and_a_checkpoint_is_refused():
    net = encoder()
    samples = 512 * 16 * 80
    assert net.longest_seconds == pytest.approx(samples / 16000)
    audio = 0.1 * torch.randn(1, samples + 1500)
    longer = net(audio, torch.tensor([samples + 1500]))
    whole = net(audio[:, :samples], torch.tensor([samples]))
    assert longer[1].shape[1] == 512 and all(map(torch.equal, longer, whole))
    model = CLAP.create(dataclasses.replace(CONFIG, audio=TINY), ["a dog barks", "rain"])
    assert "uses only the first 40.96 s" in model.describe_cut(60.0)
    with pytest.raises(ValueError, match="pretrained must be null for type 'music-tagging-transformer'"):
        AudioEncoderConfig("music-tagging-transformer", pretrained="MIT/ast")
