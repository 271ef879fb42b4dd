"""SpecAugment: masks of the configured width, a function of key and clip alone."""

import pytest
import torch

from atk.models.spec_augment import SpecAugment, SpecAugmentConfig

AUDIO = torch.randn(3, 2000, generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([2000, 1500, 800])
FRAMES = torch.tensor([100, 75, 40])
MEL = torch.rand(3, 100, 32, generator=torch.Generator().manual_seed(2)) + 5


def masker(key=3, **options):
    module = SpecAugment(SpecAugmentConfig(**options)).train()
    module.key.fill_(key)
    return module


BOTH = {"time_masks": 2, "time_width": 0.2, "mel_masks": 1, "mel_width": 0.5}


def test_masks_depend_on_key_and_clip_alone():
    masked = masker(**BOTH)(MEL, FRAMES, AUDIO, LENGTHS)
    order = [2, 0]
    padded = AUDIO[order].clone()
    padded[0, 800:] = torch.nan  # padding is not looked at
    again = masker(**BOTH)(MEL[order], FRAMES[order], padded, LENGTHS[order])
    assert torch.equal(again, masked[order])
    alone = masker(**BOTH)(MEL[2:, :60], FRAMES[2:], AUDIO[2:, :900], LENGTHS[2:])
    assert torch.equal(alone[0], masked[2, :60])
    other = masker(key=4, **BOTH)(MEL, FRAMES, AUDIO, LENGTHS)
    assert all(not torch.equal(*pair) for pair in zip(other, masked, strict=True))


def test_masked_values_are_the_mean_of_the_clip_and_padding_stays():
    masked = masker(**BOTH)(MEL, FRAMES, AUDIO, LENGTHS)
    for row, frames in enumerate(FRAMES):
        assert torch.equal(masked[row, frames:], MEL[row, frames:])
        changed = masked[row, :frames][masked[row, :frames] != MEL[row, :frames]]
        torch.testing.assert_close(changed, MEL[row, :frames].mean().expand_as(changed))


@pytest.mark.parametrize(("axis", "options"), [(1, {"time_masks": 1, "time_width": 0.2}), (0, {"mel_masks": 1})])
def test_widths_are_spread_up_to_the_largest(axis, options):
    size, largest = (100, 20) if axis else (32, 8)
    frames = FRAMES[:1]
    widths, starts = [], []
    for key in range(400):
        changed = masker(key, **options)(MEL[:1], frames, AUDIO[:1], LENGTHS[:1])[0] != MEL[0]
        line = changed.any(axis)
        assert torch.equal(changed, (line[:, None] if axis else line[None]).expand_as(changed)), "not a whole band"
        widths.append(int(line.sum()))
        if widths[-1]:
            starts.append(int(line.nonzero()[0]))
    assert max(widths) == largest and min(widths) <= 1
    assert sum(widths) / len(widths) == pytest.approx(largest / 2, rel=0.15)
    assert min(starts) <= 0.05 * size and max(starts) >= size - largest


def test_evaluation_masks_nothing():
    assert masker(**BOTH).eval()(MEL, FRAMES, AUDIO, LENGTHS) is MEL


@pytest.mark.parametrize("options", [{"time_masks": -1}, {"time_width": 0.0}, {"mel_width": 1.5}])
def test_settings_out_of_range(options):
    with pytest.raises(ValueError, match=r"must be (at least 0|in \(0, 1\])"):
        SpecAugmentConfig(**options)
