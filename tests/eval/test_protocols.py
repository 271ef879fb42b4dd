"""Evaluation by published protocols on audio files, with a model of known embeddings."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch
from sklearn import metrics as sklearn_metrics
from support.fake_model import FRAME, RATE, FakeModel, sound

from atk.data import read_split
from atk.data.dataset import EvalDataset
from atk.data.published import SETS
from atk.eval.prompts import PROMPTS, published_for
from atk.eval.protocols import PROTOCOLS, evaluate_protocols, protocol_split
from atk.eval.ranks import CONVENTIONS


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def write_folder(folder, clips, *, split="test", dataset=None, vocabularies=None):
    """Write a data folder of `clips`: file name -> (sounds, captions, tags, fold)."""
    folder.mkdir(exist_ok=True)
    for name, (sounds, *_) in clips.items():
        soundfile.write(folder / name, sound(*sounds), RATE)
    captions = [(name, caption) for name, (_, captions, *_) in clips.items() for caption in captions]
    table(folder / f"{split}.csv", ("file_name", "caption"), captions)
    if vocabularies:
        (folder / "vocabularies").mkdir()
        for name, tags in vocabularies.items():
            (folder / "vocabularies" / f"{name}.txt").write_text("\n".join(tags))
        table(folder / "tags.csv", ("file_name", "tags"), [(name, ";".join(clip[2])) for name, clip in clips.items()])
        folds = [(name, clip[3]) for name, clip in clips.items() if clip[3:]]
        if folds:
            table(folder / "folds.csv", ("file_name", "fold"), folds)
    if dataset:
        (folder / "import.json").write_text(json.dumps({"set": dataset, "files": []}))
    return folder


class Listening(FakeModel):
    """Keeps the texts that it embeds."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def embed_text(self, captions):
        self.texts += captions
        return super().embed_text(captions)


def test_every_set_and_prompt_is_known():
    assert {name for entry in SETS.values() for name in entry.evaluation} == set(PROTOCOLS)
    for published in PROMPTS.values():
        assert {*published.metrics, *published.templates, *published.verbatim, *published.plain} <= set(SETS)
        assert published.template.count("{tag}") == 1
        assert all("zero-shot" in SETS[name].evaluation for name in published.metrics)


@pytest.mark.parametrize(
    ("name", "dataset", "tag", "prompt"),
    [
        ("laion", "esc50", "sea_waves", "This is a sound of sea waves"),
        ("laion", "gtzan", "hiphop", "This audio is a hiphop song."),
        ("msclap", "esc50", "sea_waves", "this is the sound of sea waves"),
        ("wavcaps", "esc50", "sea_waves", "sea waves can be heard"),
        ("wavcaps", "urbansound8k", "car_horn", "car horn"),
        ("wavcaps", "vggsound", "police car (siren)", "police car siren can be heard"),
        ("wavcaps", "vggsound", "playing violin, fiddle", "playing violin fiddle can be heard"),
        ("open_clip", None, "sea_waves", "This is a sound of sea waves."),
        ("mteb", "esc50", "sea_waves", "This is a sound of sea_waves"),
        ("mteb", "urbansound8k", "car_horn", "This is a sound of car horn"),
        ("evar", "gtzan", "blues", "blues music can be heard"),
        ("evar", "fsd50k", "Chink_and_clink", "Chink and clink can be heard"),
        ("ttmr", "gtzan", "blues", "blues"),
    ],
)
def test_prompts(name, dataset, tag, prompt):
    assert PROMPTS[name].prompt(tag, dataset) == prompt


def test_retrieval_by_every_convention(tmp_path):
    clips = {
        "dog.wav": (["dog"] * 4, ["dog dog", "a dog", "a bell with a bell"]),
        "bell.wav": (["bell"] * 3, ["bell", "a bell"]),
        "engine.wav": (["engine"] * 2, ["a dog"]),  # of the first clip, too
    }
    folder = write_folder(tmp_path / "data", clips)
    result = evaluate_protocols(FakeModel(), folder, ["retrieval"])["retrieval"]
    assert (result["split"], result["clips"], result["captions"]) == ("test", 3, 6)
    assert result["captions_per_clip"] == {"1": 1, "2": 1, "3": 1} and result["repeated_captions"] == 1
    conventions = result["conventions"]
    assert set(conventions) == {"laion", "wavcaps", "dcase"} == set(CONVENTIONS) - {"ttmr"}
    # Each caption has one clip: the bells of dog.wav and the dog of engine.wav lead to others.
    assert conventions["laion"]["text_to_audio"]["R@1"] == pytest.approx(100 * 4 / 6)
    # dog.wav: "dog dog" is first, "a dog" ties with the one of engine.wav and ranks third.
    assert conventions["dcase"]["audio_to_text"]["R@1"] == pytest.approx(100 * (1 / 3 + 1 / 2 + 0) / 3)
    assert conventions["wavcaps"]["audio_to_text"]["R@1"] == pytest.approx(100 * 2 / 3)
    assert "R@50" in conventions["wavcaps"]["text_to_audio"] and "R@50" not in conventions["laion"]["text_to_audio"]


FOLDS = {  # three of four are right pooled; the folds have accuracies of 100 % and 0 %
    "a.wav": (["dog"], ["dog"], ["dog"], "1"),
    "b.wav": (["bell"], ["bell"], ["bell"], "1"),
    "c.wav": (["engine"], ["engine"], ["engine"], "1"),
    "d.wav": (["dog"], ["bell"], ["bell"], "10"),
}


def test_accuracy_pooled_and_as_the_mean_over_folds(tmp_path):
    vocabularies = {"urbansound8k": ["dog", "bell", "engine"]}
    folder = write_folder(tmp_path / "data", FOLDS, split="all", dataset="urbansound8k", vocabularies=vocabularies)
    model = Listening()
    result = evaluate_protocols(model, folder, ["zero-shot"])["zero-shot"]
    assert (result["split"], result["set"], result["clips"], result["tags"]) == ("all", "urbansound8k", 4, 3)
    assert tuple(result["prompts"]) == published_for("urbansound8k") == ("laion", "wavcaps", "mteb", "evar")
    wavcaps = result["prompts"]["wavcaps"]
    assert (wavcaps["example"], wavcaps["published_metric"]) == ("dog", "mean_of_folds")
    assert wavcaps["accuracy"] == pytest.approx(75)
    assert wavcaps["mean_of_folds"] == pytest.approx(50)
    assert wavcaps["folds"] == {"1": 100, "10": 0}
    assert wavcaps["top5"] == 100
    assert "sample" in result["prompts"]["mteb"]["differs"]
    assert model.texts[:4] == [*(f"This is a sound of {tag}" for tag in vocabularies["urbansound8k"]), "dog"]
    chosen = evaluate_protocols(model, folder, ["zero-shot"], prompts=["msclap"])["zero-shot"]["prompts"]
    assert list(chosen) == ["msclap"] and chosen["msclap"]["published_metric"] is None


def test_several_tags_per_clip(tmp_path):
    clips = {
        "a.wav": (["dog", "bell"], ["x"], ["dog", "bell"]),
        "b.wav": (["bell"], ["x"], ["bell"]),
        "c.wav": (["bell", "bell", "engine"], ["x"], ["engine"]),
    }
    vocabularies = {"fsd50k": ["dog", "bell", "engine", "rain"]}
    folder = write_folder(tmp_path / "data", clips, dataset="fsd50k", vocabularies=vocabularies)
    result = evaluate_protocols(FakeModel(), folder, ["zero-shot"])["zero-shot"]["prompts"]
    assert list(result) == ["evar"] and result["evar"]["published_metric"] == "mAP"
    root = 0.5**0.5
    scores = np.array([[root, root, 0, 0], [0, 1, 0, 0], [0, 2 / 5**0.5, 1 / 5**0.5, 0]])
    truth = np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    lrap = sklearn_metrics.label_ranking_average_precision_score(truth, scores)
    mean = sklearn_metrics.average_precision_score(truth[:, :3], scores[:, :3], average="macro")
    assert result["evar"]["lrap"] == pytest.approx(100 * lrap)
    assert result["evar"]["mAP"] == pytest.approx(100 * mean)
    assert result["evar"]["left_out"] == 1


def test_tagging_uses_every_vocabulary_and_the_tags_as_they_are(tmp_path):
    clips = {
        "a.wav": (["dog"], ["x"], ["dog", "big_bell"]),
        "b.wav": (["bell"], ["x"], ["bell"]),
        "c.wav": (["engine"], ["x"], ["dog"]),
    }
    vocabularies = {"large": ["dog", "bell", "big_bell"], "small": ["bell"]}
    folder = write_folder(tmp_path / "data", clips, vocabularies=vocabularies)
    model = Listening()
    result = evaluate_protocols(model, folder, ["tagging"])["tagging"]
    assert model.texts == ["dog", "bell", "big_bell", "bell"]
    assert result["chunks"] == 3
    assert result["vocabularies"]["small"]["ROC-AUC"] == 100
    assert result["vocabularies"]["large"]["tags"] == 3
    table(folder / "tags.csv", ("file_name", "dog"), [("a.wav", 1), ("b.wav", 0)])
    result = evaluate_protocols(model, folder, ["tagging"])["tagging"]
    assert result["vocabularies"]["tags"]["ROC-AUC"] == 100
    assert (result["clips"], result["skipped"]) == (2, [("c.wav", "not in tags.csv")])


def test_chunks_overlap_and_count_alike(tmp_path):
    sounds = ["dog"] * 4 + ["bell"] * 3 + ["engine"] * 3  # 1 s; windows of 0.4 s at 0, 0.2, and 0.4 s
    clips = {"long.wav": (sounds, ["dog"]), "short.wav": (["engine"] * 3, ["engine"])}
    folder = write_folder(tmp_path / "data", clips, split="multiquery")
    dataset = EvalDataset(read_split(folder, "multiquery").clips, RATE, 0.4, chunks=3)
    assert len(dataset) == 4
    assert [dataset.start(0, window) for window in range(3)] == pytest.approx([0, 0.2, 0.4])
    audio = torch.from_numpy(sound(*sounds))
    for window in range(3):
        start = window * 2 * FRAME
        torch.testing.assert_close(dataset[window]["audio"], audio[start : start + 4 * FRAME], atol=1e-4, rtol=0)
    assert len(dataset[3]["audio"]) == 3 * FRAME
    result = evaluate_protocols(FakeModel(), folder, ["multi-query"], clip_seconds=0.4)["multi-query"]
    assert result["split"] == "multiquery" and result["captions"] == 2
    metrics = result["conventions"]["ttmr"]["text_to_audio"]
    assert metrics == pytest.approx({"R@1": 100, "R@5": 100, "R@10": 100, "mAP@10": 100, "medRank": 0})


def test_splits_are_embedded_once(tmp_path):
    vocabularies = {"urbansound8k": ["dog", "bell", "engine"]}
    folder = write_folder(tmp_path / "data", FOLDS, dataset="urbansound8k", vocabularies=vocabularies)
    model = FakeModel()
    result = evaluate_protocols(model, folder, ["retrieval", "zero-shot"], batch_size=4)
    assert list(result) == ["retrieval", "zero-shot"] and model.calls == 1
    assert protocol_split("zero-shot", folder) == "test"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["retrieval"], {"folder": "0.tar"}, r"protocols need a data folder, got 0\.tar"),
        (["zero-shot"], {}, r"protocol zero-shot needs .*tags\.csv, which is missing"),
        (
            ["er"],
            {},
            "protocol must be one of 'retrieval', 'zero-shot', 'tagging', 'multi-query', 'moments', 'psds', got",
        ),
        (["retrieval"], {"prompts": ["laion"]}, "prompts are for the protocol zero-shot"),
        (["multi-query"], {"split": "test"}, r"one caption per clip, got several for a\.wav"),
        (["tagging", "multi-query"], {}, r"protocol tagging needs .*tags\.csv"),
        (["retrieval", "multi-query"], {}, r"protocol multi-query needs .*multiquery\.csv, which is missing"),
        (["retrieval"], {"split": "val"}, r"protocol retrieval needs .*val\.csv, which is missing"),
        (["multi-query"], {"clip_seconds": None}, "needs clip_seconds"),
    ],
)
def test_mistakes(names, options, message, tmp_path):
    folder = write_folder(tmp_path / "data", {"a.wav": (["dog"], ["dog", "a dog"])})
    model = FakeModel()
    with pytest.raises(ValueError, match=message):
        evaluate_protocols(model, **{"folder": folder, "names": names, **options})
    assert model.calls == ("several" in message)  # all others are known before anything is embedded


def test_mistakes_of_folds_and_prompts(tmp_path):
    folder = write_folder(tmp_path / "data", FOLDS, dataset="esc50", vocabularies={"esc50": ["dog", "bell", "engine"]})
    with pytest.raises(ValueError, match=r"prompts must be one of 'laion', .*got 'mine'"):
        evaluate_protocols(FakeModel(), folder, ["zero-shot"], prompts=["mine"])
    table(folder / "folds.csv", ("file_name", "fold"), [("a.wav", 1), ("b.wav", 2)])
    with pytest.raises(ValueError, match=r"folds\.csv lacks 2 of 4 clips, the first is c\.wav"):
        evaluate_protocols(FakeModel(), folder, ["zero-shot"])
    (folder / "folds.csv").unlink()
    with pytest.raises(ValueError, match=r"zero-shot needs .*folds\.csv, which is missing; import the set again"):
        evaluate_protocols(FakeModel(), folder, ["zero-shot"])
