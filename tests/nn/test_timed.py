"""The losses of timed captions, against loops over pairs."""

import pytest
import torch
import torch.nn.functional as F

from atk.nn.timed import TimedLoss, TimedTokens

SCALE = torch.tensor(3.0, dtype=torch.float64)
BIAS = torch.tensor(-1.0, dtype=torch.float64)
# (clip, text, spans of frames): clip 1 has text 7 twice as long as clip 0, and text 9 beside it at the same time.
CAPTIONS = [(0, 7, [(0, 2)]), (0, 8, [(3, 5)]), (1, 7, [(1, 3), (5, 6)]), (1, 9, [(2, 4)]), (2, 5, [(4, 9)])]
LEFT_OUT = {2: [8]}
LENGTHS = [6, 7, 4, 5]  # the spans of clip 2 lie beyond its end, and clip 3 has no timed caption


def make_inputs():
    torch.manual_seed(0)
    frames = torch.randn(4, 7, 6, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)
    token_mask = torch.tensor([[True] * n + [False] * (3 - n) for n in (1, 2, 3, 2, 1)])
    spans = torch.zeros(5, 2, 2, dtype=torch.int64)
    for row, (_, _, times) in zip(spans, CAPTIONS, strict=True):
        row[: len(times)] = torch.tensor(times)
    counts = torch.tensor([sum(clip == n for clip, _, _ in CAPTIONS) for n in range(4)])
    left_out = torch.tensor([[0], [0], [8], [0]])
    ids = torch.tensor([text for _, text, _ in CAPTIONS])
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    return frames, mask, TimedTokens(tokens, token_mask, ids, counts, spans, left_out)


def frame_score(frames, texts, clip, frame, text):
    tokens = F.normalize(texts.tokens[text][texts.token_mask[text]], dim=-1)
    return (tokens @ F.normalize(frames[clip, frame], dim=-1)).max()


def frames_of(caption):
    clip, _, spans = CAPTIONS[caption]
    return [frame for first, end in spans for frame in range(first, end) if frame < LENGTHS[clip]]


def sounding(clip, text):
    """The frames of a clip in which a text sounds."""
    return [f for c, (n, name, _) in enumerate(CAPTIONS) if (n, name) == (clip, text) for f in frames_of(c)]


def span_score(frames, texts, caption, text):
    clip = CAPTIONS[caption][0]
    return torch.stack([frame_score(frames, texts, clip, frame, text) for frame in frames_of(caption)]).mean()


def is_negative(span, text):
    clip, name, _ = CAPTIONS[span]
    other = CAPTIONS[text][1]
    return other != name and other not in LEFT_OUT.get(clip, []) and not {*frames_of(span)} & {*sounding(clip, other)}


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_spans_are_contrasted_with_the_texts_that_do_not_sound_in_them(name):
    frames, mask, texts = make_inputs()
    loss = TimedLoss().double()
    bias = BIAS if name == "sigmoid" else None
    value = loss(frames, mask, texts, SCALE, bias)["timed"]

    def logit(score):
        return SCALE * score + (BIAS if name == "sigmoid" else 0)

    expected = []
    spans = [caption for caption in range(5) if frames_of(caption)]
    assert spans == [0, 1, 2, 3] and not is_negative(3, 2) and not is_negative(0, 2) and is_negative(0, 1)
    for span in spans:
        positive = logit(span_score(frames, texts, span, span))
        rows = [logit(span_score(frames, texts, span, text)) for text in range(5) if is_negative(span, text)]
        columns = [logit(span_score(frames, texts, other, span)) for other in spans if is_negative(other, span)]
        if name == "sigmoid":
            expected.append(F.softplus(-positive) + sum(map(F.softplus, rows)))
        else:
            by_text = torch.stack([positive, *columns]).logsumexp(0)
            expected.append(torch.stack([positive, *rows]).logsumexp(0) + by_text - 2 * positive)
    expected = torch.stack(expected).mean()
    torch.testing.assert_close(value, expected)
    inputs = (frames, texts.tokens)
    for got, want in zip(torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(got, want)
    if name == "info_nce":
        torch.testing.assert_close(loss(frames, mask, texts, SCALE, None, "mean")["timed"], expected / 2)


def test_every_frame_is_judged_by_every_text():
    frames, mask, texts = make_inputs()
    loss = TimedLoss(timed_weight=0, frame_weight=1, temperature=0.5, bias=-2).double()
    value = loss(frames, mask, texts, SCALE)["frames"]
    expected = []
    for clip in range(3):  # clip 3 does not count
        for frame in range(LENGTHS[clip]):
            for text, (_, name, _) in enumerate(CAPTIONS):
                if name not in LEFT_OUT.get(clip, []):
                    sign = 1 if frame in sounding(clip, name) else -1
                    logit = 2 * frame_score(frames, texts, clip, frame, text) - 2
                    expected.append(F.softplus(-sign * logit))
    expected = torch.stack(expected).sum() / sum(LENGTHS[:3])
    torch.testing.assert_close(value, expected)
    parameters = (*loss.parameters(), frames)
    assert len(parameters) == 3
    value.backward()
    assert all(parameter.grad.any() for parameter in parameters)
    assert loss.readings()["frame_scale"].item() == pytest.approx(2)


def test_autocast_leaves_means_and_logits_in_float32():
    frames, mask, texts = make_inputs()
    frames, texts = frames.float(), texts._replace(tokens=texts.tokens.float())
    loss = TimedLoss(frame_weight=1)
    with torch.autocast("cpu", torch.bfloat16):
        halved = loss(frames, mask, texts, SCALE.float())
    exact = loss(frames.bfloat16().float(), mask, texts, SCALE.float())
    for name, value in halved.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=5e-3, atol=0)


def test_without_timed_captions_the_loss_is_0_and_has_a_gradient():
    frames, mask, texts = make_inputs()
    empty = TimedTokens(
        texts.tokens[:0], texts.token_mask[:0], texts.ids[:0], texts.counts * 0, texts.spans[:0], texts.left_out
    )
    loss = TimedLoss(frame_weight=1)
    terms = loss(frames, mask, empty, SCALE)
    assert list(terms) == ["timed", "frames"]
    total = loss.total(terms)
    total.backward()
    assert total.item() == 0 and not frames.grad.any()


@pytest.mark.parametrize("options", [{"timed_weight": 0}, {"timed_weight": -1}, {"temperature": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        TimedLoss(**options)
