"""Mixtures of clips with references: added sounds, references to subtract, and unchanged clips."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from support.clips import RATE, write_clip

from atk.data import AudioError, Clip, MixConfig, MixtureDataset, ReferencePool, batches_of, one_pass
from atk.data.audio import load_audio
from atk.data.levels import snr_gain


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


def test_the_added_sound_has_the_requested_signal_to_noise_ratio(clips, pool):
    item = make(clips, pool, snr_db=(6.0, 6.0))[0, 0]
    sound = item["references"][0]
    power = sound.square().sum() / sound.count_nonzero()
    assert 10 * torch.log10(item["input"].square().mean() / power).item() == pytest.approx(6.0, abs=0.05)


@pytest.mark.parametrize("condition", ["same/same", "same/diff", "multi/same"])
def test_without_levels_a_mixture_is_the_plain_sum(tmp_path, condition):
    loud = [write_clip(tmp_path / "loud.wav", 100, level=0.9)]
    recordings = [write_clip(tmp_path / f"ref{n}.wav", 300, 0.3, 0.5 + 0.1 * n) for n in range(2)]
    item = make(loud, ReferencePool(recordings, ["", ""], []), condition=condition, snr_db=None)[0, 0]
    original = make(loud, None)[0, 0]["audio"]
    assert torch.equal(item["input"], original) and item["audio"].abs().max() > 1
    files = {recording.file_name: load_audio(recording.path, RATE) for recording in recordings}
    for name, reference in zip(item["added"], item["references"], strict=True):
        assert torch.equal(reference[reference != 0], files[name][files[name] != 0])
    if condition.endswith("same"):
        torch.testing.assert_close(item["audio"], original + sum(item["references"]), rtol=0, atol=1e-6)


def test_what_is_common_to_input_and_reference_is_the_clip(clips, pool):
    dataset = make(clips, pool, evaluate=False, rate=1.0, common=1.0, snr_db=None)
    pitches = {recording.file_name: 300 + 20 * n for n, recording in enumerate(pool.clips)}
    for index in range(len(clips)):
        item = dataset[index, 0]
        assert item["caption"] == f"tone {index}" and len(item["added"]) == 1
        (reference,) = item["references"]
        clip = make(clips, None)[index, 0]["audio"]
        heard = [int(torch.fft.rfft(mixture - clip).abs().argmax()) for mixture in (item["audio"], reference)]
        assert abs(heard[0] - pitches[item["added"][0]]) < 5 and abs(heard[0] - heard[1]) > 10
    half, evaluation = make(clips, pool, evaluate=False, rate=1.0, common=0.5), make(clips, pool, common=1.0)
    assert 15 < half.collate([half[index, epoch] for index in range(6) for epoch in range(10)]).common.sum() < 45
    assert not evaluation.collate([evaluation[0, 0]]).common.any()


@pytest.mark.parametrize("condition", ["same/diff", "multi/diff"])
def test_a_shifted_reference_is_the_same_recording_at_another_time(clips, pool, condition):
    item = make(clips, pool, condition=condition)[0, 0]
    added, reference = item["audio"] - item["input"], sum(item["references"])
    assert not torch.allclose(added, reference, atol=1e-4)
    # A shift changes only the phases of the spectrum.
    if condition == "same/diff":
        torch.testing.assert_close(torch.fft.rfft(added).abs(), torch.fft.rfft(reference).abs(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("condition", ["same/diff", "multi/diff"])
@pytest.mark.parametrize("seconds", [1.0, 0.999])
def test_a_recording_as_long_as_the_clip_is_shifted_too(clips, tmp_path, condition, seconds):
    noise = np.random.default_rng(0).standard_normal((3, round(seconds * RATE)))
    for index, wave in enumerate(noise):
        soundfile.write(tmp_path / f"long{index}.wav", 0.1 * wave, RATE, subtype="FLOAT")
    pool = ReferencePool([Clip(f"{n}", tmp_path / f"long{n}.wav", (), seconds) for n in range(3)], [""] * 3, [])
    for index in range(len(clips)):
        item = make(clips, pool, condition=condition)[index, 0]
        added = item["audio"] - item["input"]
        for reference in item["references"]:
            # The circular correlation with the added sound peaks at the shift of the reference.
            correlation = torch.fft.irfft(torch.fft.rfft(added) * torch.fft.rfft(reference).conj(), n=RATE)
            shift = int(correlation.argmax())
            assert min(shift, RATE - shift) >= 0.05 * RATE
            assert correlation.max() > 0.3 * added.norm() * reference.norm()


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
    first = make(clips, pool, evaluate=False, rate=1.0)
    second = make(clips[:3] + clips[3:], pool, evaluate=False, rate=1.0)
    reseeded = make(clips, pool, evaluate=False, rate=1.0, seed=1)
    assert torch.equal(first[4, 7]["audio"], second[4, 7]["audio"])
    assert not torch.equal(first[4, 7]["audio"], first[4, 8]["audio"])
    assert not torch.equal(first[4, 7]["audio"], reseeded[4, 7]["audio"])


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


def test_a_clip_that_nothing_can_be_mixed_into_is_unchanged_in_evaluation(clips, pool):
    every = {"dog", "rain", "bell"}
    dataset = make(clips, pool, avoid=[every] + [set()] * 5)
    unmixed = dataset[0, 0]
    assert unmixed["added"] == () and unmixed["references"] == [] and torch.equal(unmixed["input"], unmixed["audio"])
    assert all(dataset[index, 0]["added"] for index in range(1, 6))
    with pytest.raises(ValueError, match=r"references: none of 6 can be mixed into clip0\.wav"):
        make(clips, pool, avoid=[every] * len(clips))


def test_a_pool_that_holds_only_the_clip_is_refused_before_any_file_is_read(clips):
    pool = ReferencePool(clips[:1], [""], [])
    for evaluate in (False, True):
        with pytest.raises(ValueError, match=r"references: none of 1 can be mixed into clip0\.wav"):
            make(clips[:1], pool, evaluate=evaluate)
    make(clips[:1], pool, evaluate=False, rate=0.0)[0, 0]


def test_a_clip_is_never_its_own_reference(clips):
    pool = ReferencePool(clips[:2], ["", ""], [])
    assert {make(clips[:1], pool, seed=seed)[0, 0]["added"] for seed in range(20)} == {("clip1.wav",)}


def test_no_spelling_of_its_path_makes_a_clip_its_own_reference(clips, monkeypatch):
    monkeypatch.chdir(clips[0].path.parent)
    respelled = [Clip(clip.file_name, Path(f"../{Path.cwd().name}") / clip.path.name, (), 1.0) for clip in clips[:2]]
    pool = ReferencePool(respelled, ["", ""], [])
    assert {make(clips[:1], pool, seed=seed)[0, 0]["added"] for seed in range(20)} == {("clip1.wav",)}


def test_another_recording_of_the_class_is_never_the_clip(clips):
    pool = ReferencePool(clips, ["low"] * 3 + ["high"] * 3, [])
    dataset = make(clips, pool, condition="diff/diff")
    for index in range(len(clips)):
        clip = dataset[index, 0]["input"]
        for epoch in range(10):
            (reference,) = dataset[index, epoch]["references"]
            assert abs(F.cosine_similarity(clip, reference, dim=0)) < 0.5
    # If the clip is one of two recordings of a class, the class has no other recording to subtract.
    pairs = make(clips[:2], ReferencePool(clips[:4], ["low"] * 2 + ["high"] * 2, []), condition="diff/diff")
    added = {name for index in range(2) for epoch in range(10) for name in pairs[index, epoch]["added"]}
    assert added == {"clip2.wav", "clip3.wav"}


def test_mixtures_and_references_are_scaled_alike_to_stay_within_full_scale(tmp_path, pool):
    loud = [write_clip(tmp_path / "loud.wav", 100, level=0.99)]
    item = make(loud, pool, snr_db=(0.0, 0.0))[0, 0]
    assert item["audio"].abs().max() <= 1.0
    torch.testing.assert_close(item["audio"], item["input"] + item["references"][0])


def test_silence_is_mixed_without_nan(tmp_path, pool):
    silent = [write_clip(tmp_path / "silent.wav", 100, level=0.0)]
    item = make(silent, pool)[0, 0]
    assert item["audio"].isfinite().all() and item["audio"].abs().max() > 0
    assert snr_gain(torch.zeros(4), torch.ones(4), 3.0) == snr_gain(torch.ones(4), torch.zeros(4), 3.0) == 1.0


def sparse_pool(path, floor):
    """A pool of one recording: a tone for one second, then nine seconds of noise at the level `floor`."""
    wave = floor * np.random.default_rng(0).standard_normal(10 * RATE)
    wave[:RATE] = 0.1 * np.sin(np.arange(RATE))
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return ReferencePool([Clip(path.name, path, (), 10.0)], ["x"], [])


@pytest.mark.parametrize("floor", [0.0, 1e-5])
def test_a_silent_window_of_a_recording_is_not_mixed_in(clips, tmp_path, floor):
    pool = sparse_pool(tmp_path / "sparse.wav", floor)
    for condition in ("same/same", "same/diff"):
        dataset = make(clips, pool, evaluate=False, rate=1.0, condition=condition)
        items = [dataset[index, epoch] for index in range(6) for epoch in range(10)]
        mixed = [item for item in items if item["added"]]
        plain = [item for item in items if not item["added"]]
        assert len(mixed) > len(items) / 3 and plain  # a single window has the tone in 2 of 10 cases
        assert all(item["references"] == [] for item in plain)
        for item in mixed:
            (reference,) = item["references"]
            residual = reference[2:] + reference[:-2] - 2 * np.cos(1.0) * reference[1:-1]  # 0 for the tone
            assert residual.square().sum() < reference.square().sum()  # for noise, it would be three times as large
    silent = [write_clip(tmp_path / f"silent{n}.wav", 100, level=0.0) for n in range(2)]
    for condition in ("same/same", "diff/diff"):
        item = make(clips, ReferencePool(silent, ["x", "x"], []), condition=condition)[0, 0]
        assert item["added"] == () and torch.equal(item["input"], item["audio"])
    pairs = make(clips, ReferencePool(silent, ["x", "x"], []), evaluate=False, pairs=True, rate=1.0)
    assert pairs[2, 0]["caption"] == "tone 2"


def test_long_recordings_and_long_clips_are_cut_to_the_window(tmp_path):
    clips = [write_clip(tmp_path / "long.wav", 100, seconds=3.0)]
    pool = ReferencePool([write_clip(tmp_path / "longer.wav", 300, seconds=5.0)], ["x"], [])
    item = make(clips, pool, clip_seconds=1.0)[0, 0]
    assert len(item["audio"]) == len(item["references"][0]) == RATE
    torch.testing.assert_close(item["input"][:50], make(clips, pool, clip_seconds=3.0)[0, 0]["input"][:50])


@pytest.mark.slow
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
        ({"rate": 1.5}, r"rate must be in \[0, 1\]"),
        ({"common": -0.5}, r"common must be in \[0, 1\]"),
        ({"snr_db": (5.0, 1.0)}, "snr_db must be"),
        ({"sources": 1}, "sources must be at least 2"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MixConfig(**options)
