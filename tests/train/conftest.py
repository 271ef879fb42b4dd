"""Data sets of the tiny runs."""

import numpy as np
import pytest
import soundfile

from atk.soundscapes import SoundscapeConfig, write_soundscapes


@pytest.fixture(scope="session")
def noises(tmp_path_factory):
    """A folder of nine short recordings without captions, two of them in a sub-folder."""
    folder = tmp_path_factory.mktemp("noises")
    (folder / "more").mkdir()
    draw = np.random.default_rng(1)
    for number in range(9):
        samples = 0.1 * draw.standard_normal(int(16000 * draw.uniform(0.3, 0.8)))
        soundfile.write(folder / ("more" if number > 6 else "") / f"{number}.wav", samples, 16000)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    settings = {"train": 12, "val": 4, "test": 6, "pool": 10, "classes": 4, "events": (1, 2), "seconds": (1.8, 2.0)}
    config = SoundscapeConfig.preset("easy", captions_per_clip=2, rephrase=True, **settings)
    return write_soundscapes(tmp_path_factory.mktemp("scenes") / "data", config, progress=False, processes=1)
