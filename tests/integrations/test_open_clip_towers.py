"""The aligned loss in open_clip's CLAP task, on a stand-in with the structure of its CLAP."""

import pytest
import torch
import torch.nn.functional as F
from support.clap_stand_in import ClapStandIn
from support.example_cases import naive_info_nce, naive_similarity
from support.integrations import library, our_ops_run

from atk.integrations.open_clip_towers import AlignedClipLoss, Towers

pytestmark = pytest.mark.slow  # the library takes seconds to import
SPECIAL_IDS = [0, 1, 2]


@pytest.fixture(scope="module")
def losses():
    return library("open_clip.loss")


def batch():
    return torch.randn(4, 100), torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 8, 9, 2], [0, 4, 2, 1]])


def features(clap, waveforms, input_ids):
    """What open_clip's CLAP returns in training."""
    vectors = clap.encode_audio({"waveform": waveforms}), clap.encode_text(input_ids)
    return [*(F.normalize(rows, dim=-1) for rows in vectors), clap.logit_scale.exp()]


def clap_with_scale():
    clap = ClapStandIn().eval()
    clap.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
    return clap


def test_both_losses_and_their_gradients(losses):
    clap, (waveforms, input_ids) = clap_with_scale(), batch()
    names, weights = zip(*clap.named_parameters(), strict=True)
    towers = Towers(clap, SPECIAL_IDS)(waveforms, input_ids)
    sim = naive_similarity(towers["frames"], towers["tokens"], token_mask=towers["token_mask"])
    scale = clap.logit_scale.exp()
    aligned = 0.5 * naive_info_nce(sim, scale) / 2
    contrastive = losses.ClipLoss()(*features(clap, waveforms, input_ids))
    expected = torch.autograd.grad(aligned + contrastive, weights, allow_unused=True)

    criterion = AlignedClipLoss(clap, SPECIAL_IDS, weight=0.5)
    assert not list(criterion.parameters()), "the model's own weights must not be counted twice"
    with our_ops_run():
        values = criterion(*features(clap, waveforms, input_ids), output_dict=True)
    torch.testing.assert_close(values["contrastive_loss"], contrastive)
    torch.testing.assert_close(values["aligned_loss"], aligned)
    ours = torch.autograd.grad(values["contrastive_loss"] + values["aligned_loss"], weights, allow_unused=True)
    for name, gradient, other in zip(names, ours, expected, strict=True):
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)
    total = criterion(*features(clap, waveforms, input_ids))
    torch.testing.assert_close(total, aligned + contrastive)


def test_embeddings_of_another_batch_are_refused(losses):
    clap, (waveforms, input_ids) = clap_with_scale(), batch()
    criterion = AlignedClipLoss(clap, SPECIAL_IDS)
    with pytest.raises(RuntimeError, match="both towers of the CLAP must run before each call of the loss"):
        criterion(torch.randn(4, 8), torch.randn(4, 8), 1.0)
    both = [features(clap, waveforms[half], input_ids[half]) for half in (slice(2), slice(2, 4))]
    images, texts = (torch.cat(halves) for halves in zip(*(half[:2] for half in both), strict=True))
    with pytest.raises(
        RuntimeError, match=r"the frames of all 4 clips, but the latest batch has 2; set --accum-freq 1"
    ):
        criterion(images, texts, 1.0)


def test_other_audio_towers_are_refused():
    clap = clap_with_scale()
    clap.audio.encoder.forward = lambda x, device=None: {"embedding": torch.randn(1, 24)}
    Towers(clap, SPECIAL_IDS)
    with pytest.raises(ValueError, match="clap must have an HTS-AT audio tower"):
        clap.encode_audio({"waveform": torch.randn(1, 100)})
