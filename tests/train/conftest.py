"""Data sets of the tiny runs."""

import numpy as np
import pytest
import soundfile

from atk.soundscapes import SoundscapeConfig, write_soundscapes


@pytest.fixture(scope="session")
def noises(tmp_path_factory):
    """A folder of nine short recordings without captions, two of them in a subfolder."""
    folder = tmp_path_factory.mktemp("noises")
    (folder / "more").mkdir()
    rng = np.random.default_rng(1)
    for index in range(9):
        samples = 0.1 * rng.standard_normal(int(16000 * rng.uniform(0.3, 0.8)))
        soundfile.write(folder / ("more" if index > 6 else "") / f"{index}.wav", samples, 16000)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    settings = {"train": 12, "val": 4, "test": 6, "pool": 10, "classes": 4, "events": (1, 2), "seconds": (1.8, 2.0)}
    config = SoundscapeConfig.preset("easy", captions_per_clip=2, rephrase=True, **settings)
    return write_soundscapes(tmp_path_factory.mktemp("scenes") / "data", config, progress=False, processes=1)


@pytest.fixture(scope="module")
def no_java():
    """Hide java, as METEOR takes seconds per call; tests/eval/test_caption_metrics.py runs METEOR."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")
        yield
