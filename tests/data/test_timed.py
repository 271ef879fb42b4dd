"""Timed captions from events.csv, and those of a crop."""

import numpy as np
import soundfile

from atk.data import TrainDataset, open_data, read_data
from atk.data.timed import timed_captions
from atk.data.timed_texts import TimedCaption, TimedSource, timed_texts

EVENTS = """file_name,event,phrase,start,end
a.wav,dog,A dog,0.5,1
a.wav,dog,a dog,2.5,3.5
a.wav,bell,a bell,1,1
a.wav,rain,rain,0,4
b.wav,rain,rain,0,4
"""


def make_set(folder):
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "a.wav", np.zeros(4 * 8000), 8000)
    (folder / "train.csv").write_text("file_name,caption\na.wav,a dog in the rain\n")
    (folder / "events.csv").write_text(EVENTS)
    return folder


def test_events_with_the_same_phrase_are_one_caption(tmp_path):
    make_set(tmp_path)
    captions, left_out = timed_captions(open_data(tmp_path), ["a.wav"])
    dog = TimedCaption("A dog", ((0.5, 1.0), (2.5, 3.5)))
    assert captions == {"a.wav": (dog, TimedCaption("rain", ((0.0, 4.0),)))}
    assert left_out == [("a.wav", "'a bell' has no duration")]


def test_files_of_several_data_sets_are_told_apart(tmp_path):
    names = [make_set(tmp_path / name) for name in "xy"]
    (names[1] / "events.csv").unlink()
    data = open_data(names)
    files = [clip.file_name for clip in read_data(data, "train").clips]
    captions, _ = timed_captions(data, files)
    assert list(captions) == [f"{names[0]}/a.wav"] == files[:1]


def test_spans_are_cut_to_the_crop():
    captions = [TimedCaption("dog", ((0.5, 1.0), (2.5, 3.5))), TimedCaption("rain", ((0.0, 4.0),))]
    random = np.random.default_rng(0)
    texts = timed_texts(captions, 1.0, 2.0, 2, random)
    assert texts == ((("dog", ((1.5, 2.0),)), ("rain", ((0.0, 2.0),))), ())
    assert timed_texts(captions, 1.0, 1.0, 2, random).captions == (("rain", ((0.0, 1.0),)),)
    kept, left_out = timed_texts(captions, 1.0, 2.0, 1, random)
    assert {kept[0].text, *left_out} == {"dog", "rain"}


def test_a_training_item_has_the_spans_of_its_crop(tmp_path):
    clips = read_data(make_set(tmp_path), "train").clips
    source = TimedSource(timed_captions(open_data(tmp_path), ["a.wav"])[0], 8)
    dataset = TrainDataset(clips, 8000, 1.0, 3, timed=source)
    items = [dataset[0, epoch] for epoch in range(20)]
    assert all(dict(item["timed"].captions)["rain"] == ((0.0, 1.0),) for item in items)
    assert {len(item["timed"].captions) for item in items} == {1, 2}  # with and without the dog
    batch = dataset.collate(items)
    assert batch.timed == [item["timed"] for item in items] and batch.split(7)[1].timed == batch.timed[7:14]
    plain = TrainDataset(clips, 8000, 1.0, 3)
    assert all((plain[0, epoch]["audio"] == item["audio"]).all() for epoch, item in enumerate(items))
    assert plain.collate([plain[0, 0]]).timed == []
