"""Reverberation: the direct-to-reverberant ratio, recorded and simulated rooms, and times that leave the tail out."""

import numpy as np
import pytest
import soundfile
from support.recorded_events import recorded, write_classes
from support.soundscape_cases import contents

from atk.data import DataWarning
from atk.soundscapes import SoundscapeConfig, write_soundscapes
from atk.soundscapes.materials import read_materials
from atk.soundscapes.rooms import RecordedRooms, SimulatedRooms, reverberate
from atk.soundscapes.scenes import plan, render

RATE = 16000
DIRECT = round(0.0025 * RATE)


def response(seconds=0.3, delay=100, seed=0):
    """Noise that decays by 60 dB in `seconds`, after a direct sound at sample `delay`."""
    time = np.arange(round(seconds * RATE)) / RATE
    decay = 0.3 * np.random.default_rng(seed).standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    return np.concatenate([np.zeros(delay), [1.0], decay]).astype(np.float32)


@pytest.mark.parametrize("ratio", [-10.0, 0.0, 15.0])
def test_the_ratio_of_direct_sound_to_reverberation(ratio):
    click = np.zeros(10, np.float32)
    click[0] = 1.0
    wet = reverberate(click, response(), ratio, RATE).astype(np.float64)
    assert np.abs(wet[:DIRECT]).argmax() == 0
    direct, rest = np.square(wet[:DIRECT]).sum(), np.square(wet[DIRECT:]).sum()
    assert 10 * np.log10(direct / rest) == pytest.approx(ratio, abs=0.01)


def test_an_anechoic_response_changes_only_the_level():
    wave = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    echo_free = np.array([0.0, 0.0, -0.5], np.float32)
    np.testing.assert_allclose(reverberate(wave, echo_free, 3.0, RATE), -0.5 * wave, atol=1e-6)


def test_reverberation_follows_the_times_of_an_event(tmp_path):
    (tmp_path / "rirs").mkdir()
    soundfile.write(tmp_path / "rirs" / "hall.wav", response(), RATE, subtype="FLOAT")
    events = write_classes(tmp_path / "events")
    settings = {"train": 6, "val": 0, "test": 1, "twins": 0, "events": (1, 1), "backgrounds": ()}
    dry_config = recorded(events, **settings)
    wet_config = recorded(events, **settings, rirs=str(tmp_path / "rirs"), drr_db=(0.0, 0.0))
    dry, wet = read_materials(dry_config), read_materials(wet_config)
    for scene in plan(dry_config, dry)["train"]:
        (audio, placed), (_, expected) = render(scene, wet_config, wet), render(scene, dry_config, dry)
        assert placed == expected
        first, last = round(placed[0].start * RATE), round(placed[0].end * RATE)
        assert not audio[:first].any()
        tail = np.square(audio[last : last + RATE // 4].astype(np.float64)).mean()
        assert -30 < 10 * np.log10(tail / np.square(audio[first:last].astype(np.float64)).mean()) < -5


def test_events_of_a_scene_share_a_recorded_room(tmp_path):
    for name, delay in (("near", 10), ("far", 500)):
        (tmp_path / name).mkdir()
        for index in range(3):
            soundfile.write(tmp_path / name / f"{index}.wav", response(delay=delay, seed=index), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "near" / "silent.wav", np.zeros(100), RATE)
    config = SoundscapeConfig(train=1, test=0, rirs=str(tmp_path))
    with pytest.warns(DataWarning, match=r"rirs: skipped 1: near/silent.wav \(silent\)"):
        rooms = read_materials(config).rooms
    assert isinstance(rooms, RecordedRooms)
    rng = np.random.default_rng(0)
    drawn = set()
    for _ in range(20):
        respond = rooms.draw(rng, config)
        delays = {int(np.abs(respond(rng)).argmax()) for _ in range(4)}
        assert len(delays) == 1
        drawn |= delays
    assert drawn == {10, 500}


def test_a_folder_without_responses(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), RATE)
    with pytest.warns(DataWarning), pytest.raises(ValueError, match="has no usable impulse response"):
        read_materials(SoundscapeConfig(train=1, test=0, rirs=str(tmp_path)))


def decay_seconds(samples):
    """Reverberation time: the decay of the energy that is left from 5 to 25 dB below the total, extrapolated to 60."""
    left = np.cumsum(np.square(samples[::-1].astype(np.float64)))[::-1]
    level = 10 * np.log10(left / left[0])
    return 3 * (np.argmax(level < -25) - np.argmax(level < -5)) / RATE


@pytest.mark.slow
def test_simulated_rooms_have_the_reverberation_time_and_repeat():
    pytest.importorskip("pyroomacoustics")
    config = SoundscapeConfig(train=1, test=0, rirs="simulated", rt60=(0.4, 0.4))
    responses = [
        [
            SimulatedRooms().draw(np.random.default_rng((seed, 0)), config)(np.random.default_rng((seed, 1)))
            for _ in "ab"
        ]
        for seed in range(4)
    ]
    assert all(np.array_equal(first, second) for first, second in responses)
    assert not np.array_equal(responses[0][0], responses[1][0])
    assert np.median([decay_seconds(first) for first, _ in responses]) == pytest.approx(0.4, rel=0.25)


@pytest.mark.slow
def test_reverberant_synthesized_scenes_are_written(tmp_path):
    pytest.importorskip("pyroomacoustics")
    config = SoundscapeConfig(train=2, test=2, twins=1, rirs="simulated", seconds=(2.8, 3.0), rt60=(0.2, 0.2))
    folders = [write_soundscapes(tmp_path / name, config, progress=False, processes=1) for name in "ab"]
    assert contents(folders[0]) == contents(folders[1])
    dry = write_soundscapes(
        tmp_path / "dry", SoundscapeConfig(train=2, test=2, twins=1, seconds=(2.8, 3.0)), progress=False
    )
    assert contents(dry)["events.csv"] == contents(folders[0])["events.csv"]
    assert contents(dry)["audio/test/00000.wav"] != contents(folders[0])["audio/test/00000.wav"]
