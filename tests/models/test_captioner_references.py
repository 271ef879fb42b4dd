"""References of the captioner: which frames the Diff block sees, and how several references combine."""

import json

import pytest
import torch
from support.tiny_captioner import LENGTHS, clips, tiny

from atk.models.captioner import Captioner
from atk.models.references import trim_silence


def test_the_mask_attends_to_the_concatenated_references_of_a_clip():
    model = tiny()
    audio, lengths = clips(LENGTHS[:2]), LENGTHS[:2]
    reference_lengths = torch.tensor([[32000, 11000, 0], [0, 0, 25000]])
    references = clips(reference_lengths)
    z, mask = model._features(audio, lengths, references, reference_lengths)
    for n, tracks in enumerate([[0, 1], [2]]):
        clip, _ = model.encode(audio[n : n + 1, : lengths[n]], lengths[n : n + 1])
        encoded = [
            model.encode(references[n : n + 1, k, : reference_lengths[n, k]], reference_lengths[n : n + 1, k])[0]
            for k in tracks
        ]
        reference = torch.cat(encoded, 1)
        expected = model.difference_block(clip, reference, torch.ones(1, reference.shape[1], dtype=torch.bool))
        torch.testing.assert_close(z[n, mask[n]], expected[0], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(expected, clip, atol=1e-2)


@pytest.mark.parametrize("samples", [16000, 32000, 60000])
def test_subtraction_is_frame_by_frame(samples):
    model = tiny(difference="subtraction")
    lengths = torch.tensor([32000])
    audio, references = clips(lengths), torch.randn(1, 2, samples)
    reference_lengths = torch.full((1, 2), samples)
    z, _ = model._features(audio, lengths, references, reference_lengths)
    expected = model.encode(audio, lengths)[0].clone()
    for k in range(2):
        reference = model.encode(references[:, k], reference_lengths[:, k])[0][:, : z.shape[1]]
        expected[:, : reference.shape[1]] -= reference
    torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-5)


def padded_and_unpadded(seconds=(0.3, 0.5)):
    """A reference `[1, 1, S]` with silence before and after its sound, and the sound alone."""
    sound = 0.1 * torch.randn(1, 1, 20000)
    before, after = (round(16000 * part) for part in seconds)
    return torch.nn.functional.pad(sound, (before, after)), sound


def test_a_padded_and_an_unpadded_reference_give_the_same_output():
    model = tiny()
    audio, lengths = clips(LENGTHS[:1]), LENGTHS[:1]
    alone, _ = model.encode(audio, lengths)
    padded, sound = (model._features(audio, lengths, x, torch.tensor([[x.shape[2]]]))[0] for x in padded_and_unpadded())
    torch.testing.assert_close(padded, sound, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(padded, alone, atol=1e-2)
    silent = model._features(audio, lengths, torch.zeros(1, 1, 9000), torch.tensor([[9000]]))[0]
    torch.testing.assert_close(silent, alone)
    older = model.with_difference("mask", 2, trim_references=False).eval()
    assert older.difference_block is model.difference_block
    padded, sound = (older._features(audio, lengths, x, torch.tensor([[x.shape[2]]]))[0] for x in padded_and_unpadded())
    assert not torch.allclose(padded, sound, rtol=1e-3, atol=1e-4)


def test_silence_is_trimmed_at_both_ends_alone():
    audio = torch.zeros(3, 10)
    audio[0, 2], audio[0, 6], audio[1, 9] = 0.5, -0.5, 0.5
    audio[2, :4] = 2.0**-17  # 0 in 16 bits
    trimmed, lengths = trim_silence(audio, torch.tensor([10, 8, 10]))
    assert lengths.tolist() == [5, 0, 0] and trimmed.shape == (3, 5)
    assert torch.equal(trimmed[0], audio[0, 2:7])


def test_models_saved_without_the_setting_attend_to_the_silence(tmp_path):
    tiny().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.pop("trim_references") is True
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert not Captioner.from_pretrained(tmp_path).config.trim_references


def test_the_mask_removes_references_one_after_the_other():
    model = tiny()
    z, z_ref = torch.randn(2, 6, 32), torch.randn(2, 3, 4, 32)
    valid = torch.tensor([[True, True, False], [True, False, False]])[..., None].expand(2, 3, 4)
    result = model.difference(z, z_ref, valid, repeated=True)
    expected = model.difference_block(model.difference_block(z[:1], z_ref[:1, 0]), z_ref[:1, 1])
    torch.testing.assert_close(result[:1], expected)
    torch.testing.assert_close(result[1:], model.difference_block(z[1:], z_ref[1:, 0]))
    assert not torch.allclose(result[:1], model.difference(z, z_ref, valid)[:1], atol=1e-3)
    shared = model.difference(z, z_ref, valid, repeated=True, common=True)
    first = z[:1] - model.difference_block(z[:1], z_ref[:1, 0])
    torch.testing.assert_close(shared[:1], first - model.difference_block(first, z_ref[:1, 1]))


def test_common_and_difference_share_a_batch():
    model = tiny()
    z, z_ref, valid = torch.randn(3, 6, 32), torch.randn(3, 1, 4, 32), torch.ones(3, 1, 4, dtype=torch.bool)
    valid[2] = False
    result = model.difference(z, z_ref, valid, common=torch.tensor([True, False, True]))
    remaining = model.difference(z, z_ref, valid)
    torch.testing.assert_close(result, torch.stack([z[0] - remaining[0], remaining[1], z[2]]))
