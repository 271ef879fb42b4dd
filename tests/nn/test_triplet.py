"""The triplet loss: its value, the negatives that each setting takes, and its errors."""

import pytest
import torch

from atk.nn import TripletLoss

COSINES = torch.tensor(  # of four clips (rows) and captions
    [
        [0.8, 0.7, 0.9, -1.0],
        [0.1, 0.5, 0.3, -0.2],
        [0.6, 0.4, 0.2, 0.3],
        [0.0, 0.1, 0.2, 0.9],
    ]
)
MARGIN = 0.4


def vectors():
    """Clips and captions whose cosines are half of `COSINES`."""
    rest = (4 - COSINES.square().sum(1)).sqrt()
    return torch.cat([COSINES, torch.diag(rest)], 1), torch.eye(4, 8)


def test_semi_hard_negatives_are_the_most_similar_below_the_positive():
    audio, text = vectors()
    cosine = COSINES / 2
    loss = TripletLoss(MARGIN, "semi-hard")
    # Of clips, by row: 0.7 below 0.8; 0.3; nothing is below 0.2, so the least similar, 0.3; 0.2.
    negatives_of_clips = cosine[[0, 1, 2, 3], [1, 2, 3, 2]]
    # Of captions, by column: 0.6 below 0.8; 0.4 below 0.5; nothing is below 0.2, so 0.2 of the last clip; 0.3.
    negatives_of_captions = cosine[[2, 2, 3, 2], [0, 1, 2, 3]]
    expected = sum(
        (MARGIN - cosine.diag() + negatives).relu().mean() for negatives in (negatives_of_clips, negatives_of_captions)
    )
    torch.testing.assert_close(loss(audio, text), expected)
    torch.testing.assert_close(TripletLoss(MARGIN, "semi-hard", "mean")(audio, text), expected / 2)
    torch.testing.assert_close(loss(3 * audio, 5 * text), expected)


@pytest.mark.parametrize("negatives", ["weighted", "random"])
def test_negatives_are_drawn_by_their_weight(negatives):
    clips = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.6, 0, 0.8, 0], [-1, 0, 0, 0]])
    captions = clips.clone()
    cosine = clips @ captions.T
    loss = TripletLoss(2.5, negatives)  # a margin that no pair keeps, so that losses tell which negative was drawn
    draws = torch.stack([loss(clips, captions) for _ in range(400)])
    weights = (1 + cosine if negatives == "weighted" else torch.ones(4, 4)) * (1 - torch.eye(4))
    expected = 2 * (2.5 - 1 + (weights * cosine).sum(1) / weights.sum(1)).mean()
    assert draws.mean() == pytest.approx(float(expected), abs=0.05)
    assert draws.std() > 0.01
    torch.manual_seed(3)
    first = loss(clips, captions)
    torch.manual_seed(3)
    assert torch.equal(loss(clips, captions), first)


@pytest.mark.parametrize("negatives", ["weighted", "random", "semi-hard"])
def test_clips_with_an_equal_caption_are_no_negatives(negatives):
    audio = torch.randn(3, 5, requires_grad=True)
    text = torch.randn(3, 5)
    loss = TripletLoss(MARGIN, negatives)
    assert loss(audio, text, torch.tensor([7, 7, 7])) == 0
    loss(audio, text, torch.tensor([7, 7, 8])).backward()
    assert audio.grad.isfinite().all() and audio.grad.any()
    # The only negatives of the first two pairs are the clip and the caption of the third.
    cosine = torch.nn.functional.normalize(audio.detach(), dim=1) @ torch.nn.functional.normalize(text, dim=1).T
    pairs = sum((MARGIN - cosine[i, i] + negative).relu() for i in (0, 1) for negative in (cosine[i, 2], cosine[2, i]))
    value = float(loss(audio.detach(), text, torch.tensor([7, 7, 8])))
    last = [(MARGIN - cosine[2, 2] + negative).relu() for negative in (*cosine[2, :2], *cosine[:2, 2])]
    assert float(pairs + min(last[:2]) + min(last[2:])) / 3 - 1e-5 <= value
    assert value <= float(pairs + max(last[:2]) + max(last[2:])) / 3 + 1e-5


def test_options_are_checked():
    for options, message in (
        ({"margin": 0.0}, "margin must be above 0"),
        ({"negatives": "hard"}, "negatives must be one of"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"gather": "ring"}, "gather must be 'all' or None for the triplet loss, got 'ring'"),
    ):
        with pytest.raises(ValueError, match=message):
            TripletLoss(**options)
    with pytest.raises(ValueError, match=r"captions must have shape \[2\], got \[3\]"):
        TripletLoss()(torch.randn(2, 4), torch.randn(2, 4), torch.arange(3))
