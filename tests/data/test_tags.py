"""Captions drawn from tags, and pairs mixed with other pairs: functions of the seed, the epoch, and the clip."""

from collections import Counter

import numpy as np
import pytest
import torch
from support.clips import RATE, write_clip

from atk.data import TrainDataset, batches_of
from atk.data.mixgen import MixGenDataset
from atk.data.texts import sample_tags

TAGS = "rock, sad,  hip hop,80s"
SEPARATE = {"rock", "sad", "hip hop", "80s"}


def draws(sampling, caption=TAGS):
    return [sample_tags(caption, sampling, np.random.default_rng(seed)) for seed in range(400)]


def test_a_random_number_of_tags_in_random_order():
    drawn = [text.split(", ") for text in draws("stochastic")]
    sizes = Counter(map(len, drawn))
    assert set(sizes) == {1, 2, 3, 4} and min(sizes.values()) > 60  # each is expected 100 times
    assert all(set(tags) <= SEPARATE and len(set(tags)) == len(tags) for tags in drawn)
    assert len({tuple(tags) for tags in drawn if len(tags) == 4}) > 15  # of 24 orders
    singles = Counter(tags[0] for tags in drawn)
    assert set(singles) == SEPARATE and min(singles.values()) > 60


def test_one_tag_or_all_in_random_order():
    assert set(draws("one")) == SEPARATE
    shuffled = {tuple(text.split(", ")) for text in draws("shuffle")}
    assert len(shuffled) == 24 and all(set(tags) == SEPARATE for tags in shuffled)
    assert set(draws("shuffle", "a dog barks")) == {"a dog barks"}


def clips(folder):
    captions = [("rock, sad, 80s",), ("pop, happy",), ("a dog barks", "jazz, piano, calm, slow")]
    return [
        write_clip(folder / f"{index}.wav", 50 * (index + 1), 0.5 + index / 4, captions=texts)
        for index, texts in enumerate(captions)
    ]


def test_items_are_drawn_anew_in_each_epoch_and_the_same_after_a_restart(tmp_path):
    given = clips(tmp_path)
    plain = TrainDataset(given, RATE, 0.4, seed=1)
    sampled = TrainDataset(given, RATE, 0.4, seed=1, tag_sampling="stochastic")
    keys = [(row, epoch) for epoch in range(20) for row in range(3)]
    texts = [sampled[key]["caption"] for key in keys]
    assert texts == [sampled[key]["caption"] for key in keys]
    assert len(set(texts[::3])) > 5
    for key, text in zip(keys, texts, strict=True):
        expected = plain[key]
        assert torch.equal(sampled[key]["audio"], expected["audio"])  # the crop is the same
        assert set(text.split(", ")) <= set(expected["caption"].split(", "))
    options = {"batch_size": 2, "drop_last": False}
    whole = [batch.captions for batch, _ in zip(batches_of(sampled, **options), range(6), strict=False)]
    rest = [batch.captions for batch, _ in zip(batches_of(sampled, start_step=3, **options), range(3), strict=False)]
    assert rest == whole[3:]
    with pytest.raises(ValueError, match="tag_sampling must be one of"):
        TrainDataset(given, RATE, 0.4, tag_sampling="some")


def test_pairs_are_mixed(tmp_path):
    given = clips(tmp_path)
    plain = TrainDataset(given, RATE, 0.4, seed=1)
    mixing = MixGenDataset(given, RATE, 0.4, seed=1, rate=0.5)
    mixed = Counter()
    for epoch in range(60):
        for row in range(3):
            item, first = mixing[row, epoch], plain[row, epoch]
            if item["caption"] == first["caption"]:
                assert torch.equal(item["audio"], first["audio"])
                continue
            others = [plain[other, epoch] for other in range(3) if other != row]
            [second] = [other for other in others if f"{first['caption']} and {other['caption']}" == item["caption"]]
            torch.testing.assert_close(item["audio"], (first["audio"] + second["audio"]) / 2)
            assert (item["file"], item["clip"]) == (first["file"], row)
            mixed[row, second["clip"]] += 1
    assert len(mixed) == 6 and 60 < sum(mixed.values()) < 120  # 90 are expected
    assert len(MixGenDataset(given, RATE, 1.0, seed=1, rate=1.0)[0, 0]["audio"]) in (750, 1000)  # the longer of the two
    with pytest.raises(ValueError, match="clips must hold at least two clips to mix, got 1"):
        MixGenDataset(given[:1], RATE, 0.4, rate=1.0)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\], got 1.5"):
        MixGenDataset(given, RATE, 0.4, rate=1.5)
