"""Evaluation and search on audio files, with a model of known embeddings."""

import csv

import pytest
import soundfile
import torch
from support.fake_model import RATE, FakeModel, sound

from atk.data import AudioError
from atk.eval.retrieval import EvalSplit, embed_split, evaluate_retrieval, evaluate_tags, zero_shot
from atk.eval.search import search


def write_csv(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_folder(folder, clips):
    """Write a data folder with `clips`: file name -> (sounds of its frames, captions)."""
    folder.mkdir(exist_ok=True)
    for name, (sounds, _) in clips.items():
        soundfile.write(folder / name, sound(*sounds), RATE)
    write_csv(
        folder / "test.csv",
        ("file_name", "caption"),
        *((name, caption) for name, (_, captions) in clips.items() for caption in captions),
    )
    return folder


CLIPS = {
    "dog.wav": (["dog"] * 4, ["a dog", "dog dog"]),
    "bell.wav": (["bell"] * 3, ["a bell"]),
    "engine.wav": (["engine"] * 2, ["an engine"]),
    "both.wav": (["dog", "bell"], ["a dog and a bell"]),
}


def embed(folder, model=None, **options):
    return embed_split(model or FakeModel(), folder, **options)


def test_retrieval_of_a_perfect_model(tmp_path):
    folder = write_folder(tmp_path / "data", CLIPS)
    result = evaluate_retrieval(FakeModel(), embed(folder))
    perfect = {"R@1": 100, "R@5": 100, "R@10": 100, "mAP@10": 100, "MedR": 1}
    assert result["text_to_audio"] == pytest.approx(perfect)
    assert result["audio_to_text"] == pytest.approx(perfect)
    assert (result["clips"], result["captions"], result["skipped"]) == (4, 5, [])
    assert result["chance"]["text_to_audio"]["R@1"] == pytest.approx(25)
    assert result["chance"]["audio_to_text"]["R@1"] == pytest.approx(100 * (2 + 1 + 1 + 1) / (4 * 5))
    assert "twins" not in result and "alignment" not in result


def test_retrieval_of_wrong_captions(tmp_path):
    clips = {
        "a.wav": (["dog"], ["a bell"]),  # a.wav ranks after b.wav and ties with c.wav
        "b.wav": (["bell"], ["a bell sound"]),
        "c.wav": (["engine"], ["an engine"]),
    }
    metrics = evaluate_retrieval(FakeModel(), embed(write_folder(tmp_path / "data", clips)))["text_to_audio"]
    assert metrics["R@1"] == pytest.approx(200 / 3)
    assert metrics["mAP@10"] == pytest.approx(100 * (1 + 1 + 1 / 3) / 3)


def test_clips_that_share_a_caption_are_all_relevant_for_it(tmp_path):
    clips = {"a.wav": (["bell"], ["a dog"]), "b.wav": (["dog"], ["a dog"]), "c.wav": (["engine"], ["engine"])}
    result = evaluate_retrieval(FakeModel(), embed(write_folder(tmp_path / "data", clips)))
    assert result["text_to_audio"]["R@1"] == 100
    assert result["captions"] == 3
    assert result["chance"]["text_to_audio"]["R@1"] == pytest.approx(100 * (2 + 2 + 1) / 9)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_windows_are_averaged_by_their_length(tmp_path, batch_size):
    folder = write_folder(tmp_path / "data", {"a.wav": (["dog", "dog", "dog", "bell", "dog"], ["a dog"])})
    write_csv(folder / "events.csv", ("file_name", "event", "phrase", "start", "end"), ("a.wav", "dog", "dog", 0, 1))
    split = embed(folder, clip_seconds=0.3, batch_size=batch_size)
    windows = torch.tensor([[1.0, 0, 0, 0], [0.5**0.5, 0.5**0.5, 0, 0]])
    expected = torch.nn.functional.normalize(torch.tensor([3.0, 2.0]) @ windows, dim=0)
    torch.testing.assert_close(split.pooled[0], expected)
    kept = split.clips["a.wav"]
    assert kept.frames.argmax(1).tolist() == [0, 0, 0, 1, 0]
    assert kept.times.tolist() == pytest.approx([0.05, 0.15, 0.25, 0.35, 0.45])


def test_bad_files_are_skipped_and_listed(tmp_path):
    folder = write_folder(tmp_path / "data", CLIPS)
    (folder / "bell.wav").write_bytes(b"")
    broken = sound("dog", "dog", "dog", "dog").copy()
    broken[-5] = float("nan")  # in the second window; the header is valid
    soundfile.write(folder / "dog.wav", broken, RATE, subtype="FLOAT")
    split = embed(folder, clip_seconds=0.2, batch_size=3)
    assert split.files == ["engine.wav", "both.wav"]
    result = evaluate_retrieval(FakeModel(), split)
    assert (result["clips"], result["captions"]) == (2, 2)
    assert result["text_to_audio"]["R@1"] == 100
    assert [name for name, _ in result["skipped"]] == ["bell.wav", "dog.wav"]
    with pytest.raises(AudioError, match=r"bell\.wav"):
        embed(folder, on_error="raise")
    (folder / "test.csv").write_text("file_name,caption\ndog.wav,a dog\n")
    with pytest.raises(ValueError, match="none of the 1 clips"):
        embed(folder)
    with pytest.raises(AudioError, match=r"dog\.wav.*NaN"):
        embed(folder, on_error="raise")


def test_a_split_can_be_embedded_repeatedly_with_worker_processes(tmp_path):
    data = EvalSplit(write_folder(tmp_path / "data", CLIPS), sample_rate=RATE, workers=1, clip_seconds=0.2)
    first, second = data.embed(FakeModel()), data.embed(FakeModel())
    assert torch.equal(first.pooled, second.pooled)
    assert torch.equal(first.pooled, embed(data.folder, clip_seconds=0.2).pooled)


def write_twins(folder):
    """Write a folder with twins: a caption of b.wav fits a.wav better; c.wav and d.wav differ only in silence."""
    clips = {
        "a.wav": (["dog"] * 4, ["a dog", "same"]),
        "b.wav": (["bell"] * 4, ["dog and dog", "the bell", "same"]),
        "c.wav": (["dog"] * 4 + [""] * 4, ["dog"]),
        "d.wav": (["dog"] * 4 + [""] * 5, ["dog with dog"]),
        "e.wav": (["bell"], ["bell"]),
    }
    write_folder(folder, clips)
    pairs = [("a.wav", "b.wav"), ("b.wav", "a.wav"), ("c.wav", "d.wav"), ("e.wav", "elsewhere.wav")]
    write_csv(folder / "twins.csv", ("file_name", "twin"), *pairs)
    return folder


def test_twins(tmp_path):
    split = embed(write_twins(tmp_path / "data"))
    assert split.clips.keys() == {"a.wav", "b.wav", "c.wav", "d.wav", "e.wav"}
    twins = evaluate_retrieval(FakeModel(), split)["twins"]
    # "a dog" is right, "dog and dog" is wrong, and "the bell" is right. Global: "dog" (c) is right, as d has more
    # silence, and "dog with dog" (d) is wrong. Max-mean: "dog" (c) is right, and "dog with dog" (d) is wrong, as both
    # clips score 1: "with" matches silence.
    assert (twins["pairs"], twins["captions"]) == (2, 5)
    assert twins["global"] == pytest.approx(100 * 3 / 5)
    assert twins["max_mean"] == pytest.approx(100 * 3 / 5)


def test_twins_by_frames_with_equal_global_vectors(tmp_path):
    class Blind(FakeModel):
        def embed_audio(self, audio, lengths):
            audio = super().embed_audio(audio, lengths)
            return audio._replace(pooled=torch.ones_like(audio.pooled) / 2)

    model = Blind()
    split = embed(write_twins(tmp_path / "data"), model)
    twins = evaluate_retrieval(model, split)["twins"]
    assert twins["global"] == 0
    assert twins["max_mean"] == pytest.approx(60)


def test_alignment(tmp_path):
    folder = write_folder(tmp_path / "data", CLIPS)
    header = ("file_name", "event", "phrase", "start", "end")
    rows = [("both.wav", "dog", "a dog", 0, 0.04), ("both.wav", "bell", "a bell", 0, 0.04), ("x.wav", "dog", "x", 0, 1)]
    write_csv(folder / "events.csv", header, *rows)
    split = embed(folder)
    assert split.clips.keys() == {"both.wav"}
    alignment = evaluate_retrieval(FakeModel(), split)["alignment"]
    assert alignment == {"right": 50, "chance": 50, "phrases": 2, "left_out": 0}
    assert "alignment" not in evaluate_retrieval(FakeModel(), embed(folder, side_files=False))


@pytest.mark.slow
def test_tags_and_zero_shot(tmp_path):
    folder = write_folder(tmp_path / "data", CLIPS)
    rows = [("dog.wav", 1, 0, 0), ("bell.wav", 0, 1, 0), ("engine.wav", 1, 0, 0), ("both.wav", 1, 1, 0)]
    write_csv(folder / "tags.csv", ("file_name", "dog", "church_bell", "never"), *rows)
    prompts = []

    class Model(FakeModel):
        def embed_text(self, captions):
            prompts.extend(captions)
            return super().embed_text(captions)

    split = embed(folder)
    tags = evaluate_tags(Model(), split)
    assert prompts == ["the sound of dog", "the sound of church bell", "the sound of never"]
    assert (tags["tags"], tags["left_out"], tags["clips"]) == (2, 1, 4)
    # dog: the two clips that contain the sound rank first, and engine.wav ties with bell.wav at 0. bell: perfect.
    assert tags["ROC-AUC"] == pytest.approx(100 * ((2 + 0.5) / 3 + 1) / 2)
    zero = zero_shot(FakeModel(), split)
    assert zero == {"accuracy": pytest.approx(200 / 3), "chance": pytest.approx(100 / 3), "classes": 3, "clips": 3}


def test_unusable_tags_are_rejected(tmp_path):
    folder = write_folder(tmp_path / "data", CLIPS)
    split = embed(folder)
    with pytest.raises(ValueError, match=r"tags.csv is missing"):
        evaluate_tags(FakeModel(), split)
    write_csv(folder / "tags.csv", ("file_name", "dog"), ("other.wav", 1))
    with pytest.raises(ValueError, match="none of the 4 clips"):
        evaluate_tags(FakeModel(), split)
    write_csv(folder / "tags.csv", ("file_name", "dog", "bell"), ("both.wav", 1, 1))
    with pytest.raises(ValueError, match="exactly one tag"):
        zero_shot(FakeModel(), split)
    with pytest.raises(ValueError, match=r"template must contain \{tag\}"):
        evaluate_tags(FakeModel(), split, "a sound")


def test_search_ranks_a_folder(tmp_path):
    folder = tmp_path / "sounds"
    (folder / "deep er").mkdir(parents=True)
    soundfile.write(folder / "deep er" / "bell ü.WAV", sound("bell", "bell"), RATE, format="WAV")
    soundfile.write(folder / "dog.flac", sound("dog"), RATE)
    soundfile.write(folder / "mostly bell.wav", sound("bell", "bell", "dog"), RATE)
    (folder / "broken.wav").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("bell")
    result = search(FakeModel(), folder, "a bell", clip_seconds=0.2)
    names = [path.relative_to(folder).as_posix() for _, path in result.hits]
    assert names == ["deep er/bell ü.WAV", "mostly bell.wav", "dog.flac"]
    scores = [score for score, _ in result.hits]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.99
    assert [name for name, _ in result.skipped] == ["broken.wav"]
    with pytest.raises(AudioError, match=r"broken\.wav"):
        search(FakeModel(), folder, "a bell", on_error="raise")
    with pytest.raises(ValueError, match="query"):
        search(FakeModel(), folder, " ")
    with pytest.raises(FileNotFoundError):
        search(FakeModel(), tmp_path / "nowhere", "a bell")
