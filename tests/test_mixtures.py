"""Mixtures of clips with references: what is added, what is given to subtract, and what stays as it was."""

import numpy as np
import pytest
import soundfile
import torch

from atk.data import (
    AudioError,
    Clip,
    MixConfig,
    MixtureDataset,
    ReferencePool,
    batches_of,
    one_pass,
    read_references,
)
from atk.data.mixtures import snr_gain

RATE = 1000


def write_clip(path, frequency, seconds=1.0, level=0.1, captions=("a tone",)):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return Clip(path.name, path, captions, seconds)


@pytest.fixture
def clips(tmp_path):
    return [write_clip(tmp_path / f"clip{n}.wav", 100 + 10 * n, captions=(f"tone {n}",)) for n in range(6)]


@pytest.fixture
def pool(tmp_path):
    names = ["dog", "dog", "bell", "bell", "rain", "rain"]
    recordings = [write_clip(tmp_path / f"ref{n}.wav", 300 + 20 * n, 0.3, 0.05 + 0.01 * n) for n in range(6)]
    return ReferencePool(recordings, names, [])


def make(clips, pool, evaluate=True, pairs=False, avoid=None, seed=0, clip_seconds=1.0, **mix):
    options = {"mix": MixConfig(**mix), "pool": pool, "pairs": pairs, "evaluate": evaluate, "avoid": avoid}
    return MixtureDataset(clips, RATE, clip_seconds, seed, **options)


def test_the_reference_is_exactly_what_was_added(clips, pool):
    for index in range(len(clips)):
        item = make(clips, pool)[index, 0]
        (reference,) = item["references"]
        torch.testing.assert_close(item["audio"], item["input"] + reference)
        assert reference.abs().max() > 0 and len(reference) == len(item["audio"])


def test_the_level_of_the_added_sound_is_the_ratio_asked_for(clips, pool):
    item = make(clips, pool, snr_db=(6.0, 6.0))[0, 0]
    sound = item["references"][0]
    power = sound.square().sum() / sound.count_nonzero()
    assert 10 * torch.log10(item["input"].square().mean() / power).item() == pytest.approx(6.0, abs=0.05)


@pytest.mark.parametrize("condition", ["same/diff", "multi/diff"])
def test_a_shifted_reference_is_the_same_recording_at_another_time(clips, pool, condition):
    item = make(clips, pool, condition=condition)[0, 0]
    added, reference = item["audio"] - item["input"], sum(item["references"])
    assert not torch.allclose(added, reference, atol=1e-4)
    # Same magnitudes in the spectrum of each recording: shifting changes phases alone.
    if condition == "same/diff":
        torch.testing.assert_close(torch.fft.rfft(added).abs(), torch.fft.rfft(reference).abs(), atol=1e-3, rtol=1e-3)


def test_another_recording_has_the_class_of_the_added_one(clips, pool):
    pitch = {recording.file_name: 300 + 20 * n for n, recording in enumerate(pool.clips)}
    for index in range(len(clips)):
        item = make(clips, pool, condition="diff/diff")[index, 0]
        peak = float(torch.fft.rfft(item["references"][0]).abs().argmax()) * RATE / len(item["audio"])
        added = pitch[item["added"][0]]
        expected = added + 20 if (added - 300) % 40 == 0 else added - 20
        assert abs(peak - expected) < 5


@pytest.mark.parametrize("condition", ["multi/same", "multi/diff"])
def test_several_sounds_come_with_one_reference_each(clips, pool, condition):
    counts = set()
    for index in range(len(clips)):
        item = make(clips, pool, condition=condition, sources=4)[index, 0]
        assert len(item["references"]) == len(item["added"]) == len(set(item["added"]))
        counts.add(len(item["added"]))
        if condition == "multi/same":
            torch.testing.assert_close(item["audio"], item["input"] + sum(item["references"]))
    assert counts <= {2, 3, 4} and len(counts) > 1


def test_the_share_of_mixed_clips_is_the_rate_and_the_rest_is_untouched(clips, pool):
    dataset = make(clips, pool, evaluate=False, rate=0.3)
    items = [dataset[index, epoch] for index in range(6) for epoch in range(60)]
    mixed = [item for item in items if item["added"]]
    assert 0.2 < len(mixed) / len(items) < 0.4
    clean = make(clips, None, evaluate=False)
    plain = next(item for item in items if not item["added"])
    torch.testing.assert_close(plain["audio"], clean[plain["clip"], 0]["audio"])
    assert plain["references"] == []


def test_draws_depend_on_seed_epoch_and_clip_alone(clips, pool):
    one, two = make(clips, pool, evaluate=False, rate=1.0), make(clips[:3] + clips[3:], pool, evaluate=False, rate=1.0)
    assert torch.equal(one[4, 7]["audio"], two[4, 7]["audio"])
    assert not torch.equal(one[4, 7]["audio"], one[4, 8]["audio"])
    assert not torch.equal(one[4, 7]["audio"], make(clips, pool, evaluate=False, rate=1.0, seed=1)[4, 7]["audio"])


def test_pairs_join_the_captions_and_give_no_reference(clips):
    pool = ReferencePool(clips, [""] * len(clips), [])
    dataset = make(clips, pool, evaluate=False, pairs=True, rate=1.0)
    for index in range(len(clips)):
        item = dataset[index, 0]
        first, second = item["caption"].split(" and ")
        assert first == f"tone {index}" and second in {f"tone {n}" for n in range(6)} - {first}
        assert item["references"] == []


def test_classes_to_avoid_are_not_mixed_in(clips, pool):
    dataset = make(clips, pool, avoid=[{"dog", "rain"}] * len(clips))
    added = {name for index in range(len(clips)) for name in dataset[index, 0]["added"]}
    assert added <= {"ref2.wav", "ref3.wav"}
    with pytest.raises(ValueError, match=r"references: none of 6 can be mixed into clip0\.wav"):
        make(clips, pool, avoid=[{"dog", "rain", "bell"}] * len(clips))[0, 0]


def test_a_clip_is_never_its_own_reference(clips):
    pool = ReferencePool(clips[:2], ["", ""], [])
    assert {make(clips[:1], pool, seed=seed)[0, 0]["added"] for seed in range(20)} == {("clip1.wav",)}


def test_mixtures_stay_within_full_scale_and_references_follow(tmp_path, pool):
    loud = [write_clip(tmp_path / "loud.wav", 100, level=0.99)]
    item = make(loud, pool, snr_db=(0.0, 0.0))[0, 0]
    assert item["audio"].abs().max() <= 1.0
    torch.testing.assert_close(item["audio"], item["input"] + item["references"][0])


def test_silence_is_mixed_without_nan(tmp_path, pool):
    silent = [write_clip(tmp_path / "silent.wav", 100, level=0.0)]
    item = make(silent, pool)[0, 0]
    assert item["audio"].isfinite().all() and item["audio"].abs().max() > 0
    assert snr_gain(torch.zeros(4), torch.ones(4), 3.0) == snr_gain(torch.ones(4), torch.zeros(4), 3.0) == 1.0


def test_long_recordings_and_long_clips_are_cut_to_the_window(tmp_path):
    clips = [write_clip(tmp_path / "long.wav", 100, seconds=3.0)]
    pool = ReferencePool([write_clip(tmp_path / "longer.wav", 300, seconds=5.0)], ["x"], [])
    item = make(clips, pool, clip_seconds=1.0)[0, 0]
    assert len(item["audio"]) == len(item["references"][0]) == RATE
    torch.testing.assert_close(item["input"][:50], make(clips, pool, clip_seconds=3.0)[0, 0]["input"][:50])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_pad_references_and_do_not_depend_on_workers(clips, pool, workers):
    dataset = make(clips, pool, evaluate=False, rate=0.5, condition="multi/same")
    batch = next(iter(batches_of(dataset, batch_size=6, workers=workers)))
    assert batch.references.shape[:2] == batch.reference_lengths.shape and batch.inputs.shape == (6, 0)
    for row, names in enumerate(batch.added):
        assert (batch.reference_lengths[row] > 0).sum() == len(names)
    again = next(iter(batches_of(dataset, batch_size=6, workers=0)))
    assert torch.equal(batch.audio, again.audio) and torch.equal(batch.references, again.references)
    assert batch.to("cpu").added == batch.added


def test_one_pass_gives_every_clip_once_and_names_a_bad_reference(tmp_path, clips, pool):
    pool.clips[0].path.write_bytes(b"not audio")
    batches = list(one_pass(make(clips, pool), batch_size=4))
    files = [name for batch in batches for name in batch.files]
    skipped = [name for batch in batches for name, _ in batch.skipped]
    assert len(files) + len(skipped) == 6 and set(skipped) == {"ref0.wav"}
    with pytest.raises(AudioError, match=r"ref0\.wav"):
        list(one_pass(make(clips, pool), batch_size=4, on_error="raise"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "other"}, "condition must be one of"),
        ({"rate": 1.5}, "rate must be in 0 .. 1"),
        ({"snr_db": (5.0, 1.0)}, "snr_db must be"),
        ({"sources": 1}, "sources must be at least 2"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MixConfig(**options)


def write_esc50(folder):
    (folder / "meta").mkdir(parents=True)
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 5):
        for target, name in enumerate(("dog", "bell")):
            write_clip(folder / "audio" / f"{fold}-{target}.wav", 100)
            rows.append(f"{fold}-{target}.wav,{fold},{target},{name},False,1,A")
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def test_esc50_folds_and_classes(tmp_path):
    write_esc50(tmp_path)
    train, test = read_references(tmp_path, held_out=(5,)), read_references(tmp_path, folds=(5,))
    assert train.classes == ["dog", "bell"] * 2 and test.classes == ["dog", "bell"]
    assert not {clip.path for clip in train.clips} & {clip.path for clip in test.clips}
    train.check_classes()
    with pytest.raises(ValueError, match="class 'bell' has one recording only"):
        test.check_classes()
    with pytest.raises(ValueError, match="no recording in the folds asked for"):
        read_references(tmp_path, folds=(4,))


def test_esc50_with_a_missing_file_or_column(tmp_path):
    write_esc50(tmp_path)
    (tmp_path / "audio" / "1-0.wav").unlink()
    pool = read_references(tmp_path)
    assert len(pool.clips) == len(pool.classes) == 5 and pool.skipped[0][0] == "audio/1-0.wav"
    with pytest.raises(AudioError, match=r"1-0\.wav"):
        read_references(tmp_path, "raise")
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold\na.wav,1\n")
    with pytest.raises(ValueError, match="category missing"):
        read_references(tmp_path)


def test_any_folder_and_captioned_folders_serve_as_references(tmp_path):
    write_clip(tmp_path / "dog" / "a.wav", 100)
    write_clip(tmp_path / "dog" / "b.wav", 100)
    assert read_references(tmp_path).classes == ["dog", "dog"]
    write_clip(tmp_path / "c.wav", 100)
    with pytest.raises(ValueError, match="tells no classes"):
        read_references(tmp_path).check_classes()
    (tmp_path / "train.csv").write_text("file_name,caption\nc.wav,a tone\n")
    pool = read_references(tmp_path)
    assert [clip.file_name for clip in pool.clips] == ["c.wav"] and pool.clips[0].captions == ("a tone",)
