"""Captioning of held-out splits and of single files."""

import csv

import pytest
import soundfile
import torch
from support.clips import write_clip
from support.tiny_captioner import tiny

import atk.eval.captioning
from atk.data import Clip, MixConfig, MixtureDataset, ReferencePool
from atk.eval.caption_listing import Captions, class_mentions, format_captions, write_captions
from atk.eval.caption_metrics import CaptionScores
from atk.eval.caption_windows import encode_windows
from atk.eval.captioning import CaptionSplit, caption_file, evaluate_captions


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny()


@pytest.fixture
def folder(tmp_path):
    """A data folder with one training clip and four test clips, and a pool of recordings of two classes."""
    for name, count in (("train", 1), ("test", 4)):
        files = [f"{name}{i}.wav" for i in range(count)]
        for i, file in enumerate(files):
            write_clip(tmp_path / file, 100 + 30 * i)
        lines = [f"{file},a low tone" for file in files]
        (tmp_path / f"{name}.csv").write_text("\n".join(["file_name,caption", *lines]) + "\n")
    for name in ("dog", "bell"):
        write_clip(tmp_path / "pool" / name / "a.wav", 300, seconds=0.5)
    return tmp_path


def read(folder, **mix):
    return CaptionSplit(folder, "test", sample_rate=1000, clip_seconds=1.0, mix=MixConfig(**mix))


def count_encoded(model):
    """A list that receives the number of windows in each later call of the encoder, and the hook to remove."""
    calls = []
    return calls, model.audio_encoder.register_forward_hook(lambda _, inputs, output: calls.append(len(inputs[0])))


def scores_of(values):
    """A list of calls, and a stand-in for `caption_metrics` that adds to it and returns the values in turn."""
    calls = []
    remaining = iter(values)
    return calls, lambda candidates, references: calls.append((candidates, references)) or next(remaining)


def test_tags_in_another_format_are_ignored_without_soundscapes(folder):
    (folder / "tags.csv").write_text("id,anything\n1,many\n")
    assert read(folder).classes == [frozenset()] * 4
    (folder / "soundscapes.yaml").write_text("")
    with pytest.raises(ValueError, match="lacks the column file_name"):
        read(folder)


def test_clips_with_every_class_are_not_mixed_and_are_listed(folder, model, monkeypatch):
    (folder / "soundscapes.yaml").write_text("")
    (folder / "tags.csv").write_text("file_name,dog,bell\ntest0.wav,1,1\ntest1.wav,1,0\n")
    calls, fake_metrics = scores_of([CaptionScores({"BLEU-1": 1.0}, {}, "PTB")] * 3)
    monkeypatch.setattr(atk.eval.captioning, "caption_metrics", fake_metrics)
    result, rows = evaluate_captions(model, read(folder, references=str(folder / "pool")), beams=1)
    assert result["unmixed"] == ["test0.wav"] and result["clips"] == 4 and result["skipped"] == []
    assert [row.added for row in rows[:2]] == ["", "bell/a.wav"] and all(row.added for row in rows[2:])
    assert rows[0].mix == rows[0].minus_added == rows[0].minus_input == ""
    assert [len(candidates) for candidates, _ in calls] == [len(references) for _, references in calls] == [4, 3, 3]
    assert "named" not in result  # captions are searched for the classes of synthesized events only
    (folder / "tags.csv").write_text("file_name,dog,bell\n" + "".join(f"test{n}.wav,1,1\n" for n in range(4)))
    with pytest.raises(ValueError, match=r"references: none of 2 can be mixed into test0\.wav"):
        read(folder, references=str(folder / "pool"))


def test_metrics_missing_for_one_mode_are_listed(folder, model, monkeypatch):
    stopped = CaptionScores({"BLEU-1": 1.0}, {"METEOR": "stopped after 600 s"}, "PTB")
    complete = CaptionScores({"BLEU-1": 1.0, "METEOR": 0.3}, {}, "PTB")
    python = CaptionScores({"BLEU-1": 1.0, "METEOR": 0.3}, {}, "Python")
    monkeypatch.setattr(atk.eval.captioning, "caption_metrics", scores_of([stopped, complete, python])[1])
    result, _ = evaluate_captions(model, read(folder), beams=1)
    assert result["missing"] == {"METEOR": "stopped after 600 s"} and result["tokenizer"] == "PTB; Python"


def test_recordings_of_a_captioned_folder_come_from_its_test_split(folder):
    assert [clip.file_name for clip in read(folder, references=str(folder)).pool.clips] == [
        f"test{i}.wav" for i in range(4)
    ]


@pytest.mark.parametrize("difference", ["mask", "subtraction"])
def test_reference_windows_are_encoded_once_in_small_batches(model, tmp_path, difference):
    audio, reference = (write_clip(tmp_path / f"{name}.wav", 100, seconds=20.0).path for name in ("a", "b"))
    last = write_clip(tmp_path / "c.wav", 200, seconds=3.5).path
    captioner = model.with_difference(difference, 2).eval()
    calls, hook = count_encoded(captioner)
    captions = caption_file(captioner, audio, [reference, last], clip_seconds=1.0, beams=1)
    hook.remove()
    assert len(captions) == 20 and sum(calls) == 20 + 20 + 4 and max(calls) <= 8
    assert captions[3][:2] == (3.0, 4.0)


@pytest.mark.parametrize("difference", ["mask", "subtraction"])
def test_caption_file_matches_generate_on_its_window(model, tmp_path, difference, monkeypatch):
    rate = model.sample_rate
    captioner = model.with_difference(difference, 2).eval()
    waves = 0.1 * torch.randn(3, rate)
    for name, wave in zip("abc", waves, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wave.numpy(), rate, subtype="FLOAT")
    seen = []
    decode = captioner.decoder.generate
    monkeypatch.setattr(captioner.decoder, "generate", lambda *args: seen.append(args) or decode(*args))
    files = [tmp_path / f"{name}.wav" for name in "abc"]
    ((_, _, text),) = caption_file(captioner, files[0], files[1:], clip_seconds=1.0, beams=1)
    lengths = torch.tensor([rate])
    assert [text] == captioner.generate(waves[:1], lengths, waves[None, 1:], torch.full((1, 2), rate), beams=1)
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(seen[0][0], captioner.encode(waves[:1], lengths)[0], atol=1e-3)


def features_given(captioner, monkeypatch, *arguments, **options):
    """The features that `caption_file` decodes, and its captions."""
    seen = []
    decode = captioner.decoder.generate
    with monkeypatch.context() as patch:
        patch.setattr(captioner.decoder, "generate", lambda *args: seen.append(args[0]) or decode(*args))
        captions = caption_file(captioner, *arguments, clip_seconds=1.0, beams=1, **options)
    return torch.cat(seen, 1), captions


def test_training_and_files_give_the_same_reference(model, tmp_path, monkeypatch):
    """A sound in a longer track, as in training, is the same reference as the sound in its file, padded or not."""
    rate = model.sample_rate
    sound = 0.1 * torch.randn(rate // 2)
    for name, before in (("sound", 0), ("padded", rate // 3)):
        wave = torch.nn.functional.pad(sound, (before, before // 2))
        soundfile.write(tmp_path / f"{name}.wav", wave.numpy(), rate, subtype="FLOAT")
    recording = Clip("sound.wav", tmp_path / "sound.wav", (), 0.5)
    clip = write_clip(tmp_path / "clip.wav", 100)
    mix = MixConfig(snr_db=None, rate=1.0)
    dataset = MixtureDataset([clip], rate, 1.0, mix=mix, pool=ReferencePool([recording], [""], []))
    item = dataset[0, 0]
    (track,) = item["references"]
    assert len(track) == len(item["audio"]) == rate and not track[0]
    soundfile.write(tmp_path / "mix.wav", item["audio"].numpy(), rate, subtype="FLOAT")
    lengths = torch.tensor([rate])
    expected, _ = model._features(item["audio"][None], lengths, track[None, None], lengths[None])
    for name in ("sound", "padded"):
        features, _ = features_given(model, monkeypatch, tmp_path / "mix.wav", [tmp_path / f"{name}.wav"])
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    soundfile.write(tmp_path / "silent.wav", torch.zeros(rate).numpy(), rate)
    alone, _ = features_given(model, monkeypatch, tmp_path / "mix.wav", [tmp_path / "silent.wav"])
    torch.testing.assert_close(alone, model.encode(item["audio"][None], lengths)[0], rtol=1e-5, atol=1e-6)


def test_files_are_subtracted_repeatedly_or_compared(model, tmp_path, monkeypatch):
    a, b, c = (write_clip(tmp_path / f"{n}.wav", 100 + 100 * n, seconds=2.0).path for n in range(3))
    block = model.difference_block
    encoded = [encode_windows(model, Clip("x", path, (), 2.0), 1.0, path != a) for path in (a, b, c)]
    z, z_b, z_c = (torch.cat([window for window, _ in windows])[None] for windows in encoded)
    windows = z.split(z.shape[1] // 2, 1)
    for options, expected in (
        ({"repeated": True}, [block(block(window, z_b), z_c) for window in windows]),
        ({"common": True}, [block(block(window, z_b, common=True), z_c, common=True) for window in windows]),
        ({}, [block(window, torch.cat([z_b, z_c], 1)) for window in windows]),
    ):
        features, captions = features_given(model, monkeypatch, a, [b, c], **options)
        torch.testing.assert_close(features, torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
        assert len(captions) == 2
    silent = write_clip(tmp_path / "silent.wav", 100, level=0.0).path
    with pytest.raises(ValueError, match=r"common: silent\.wav is silent"):
        caption_file(model, a, [b, silent], common=True)
    subtracts = model.with_difference("subtraction", 2).eval()
    for captioner, references in ((subtracts, [b]), (model, [])):
        for name in ("repeated", "common"):
            with pytest.raises(ValueError, match=f"{name}: needs references, and a model with a mask"):
                caption_file(captioner, a, references, **{name: True})


def test_the_listing_has_the_captions_of_a_baseline(tmp_path):
    rows = [Captions("0", "a.wav", "dog", "dog and rain", "dog", "rain"), Captions("1", "", "wind")]
    baseline = [Captions("0", "a.wav", "cat", "cat and rain", "cat", "tone"), Captions("1", "", "bell")]
    write_captions(tmp_path / "captions.csv", rows, baseline)
    with (tmp_path / "captions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["baseline_mix"] for row in table] == ["cat and rain", ""] and table[1]["baseline_input"] == "bell"
    assert list(table[0])[-1] == "baseline_minus_input"
    write_captions(tmp_path / "captions.csv", rows, baseline[:1])
    with (tmp_path / "captions.csv").open(newline="") as file:
        assert {len(row) for row in csv.reader(file)} == {len(table[0])}
    text = format_captions(rows[:1], baseline).splitlines()
    assert [line.split() for line in text[3:5]] == [["mix", "dog", "and", "rain"], ["baseline", "cat", "and", "rain"]]


def test_without_references_a_file_is_captioned_alone(model, tmp_path):
    audio = write_clip(tmp_path / "a.wav", 100).path
    plain = model.with_difference("none", 2).eval()
    assert caption_file(plain, audio, beams=1) == caption_file(model, audio, beams=1)
    with pytest.raises(ValueError, match="trained without a Diff block"):
        caption_file(plain, audio, [audio])


def test_class_mentions_count_events_of_the_clip_and_of_the_added_sound():
    pool = ReferencePool([Clip("a.wav", "a.wav", (), 1.0), Clip("b.wav", "b.wav", (), 1.0)], ["rain", "dog bark"], [])
    rows = [
        Captions("0", "", "a dog barks"),
        Captions("1", "a.wav", "a dog barks", "a dog barks while rain falls", "a dog barks", "rain falls"),
        Captions("2", "b.wav", "a siren wails", "a dog barks", "a siren wails", "a siren wails"),
    ]
    result = class_mentions(rows, [frozenset({"rain"}), frozenset({"dog bark"}), frozenset({"siren", "engine"})], pool)
    assert result["input"] == {"target": 50.0, "added": 0.0, "target_alone": 66.67}
    assert result["mix"] == {"target": 33.33, "added": 100.0, "target_alone": 0.0}
    assert result["minus_added"] == {"target": 66.67, "added": 0.0, "target_alone": 100.0}
    assert result["minus_input"] == {"target": 33.33, "added": 50.0, "target_alone": 50.0}
