"""Folders and shards of made-up clips, and batches of them."""

import io
import itertools
import os
import tarfile

import numpy as np
import soundfile

from atk.data import unlabeled_loader

RATE = 1000


def ramps(folder, count, seconds=2.0, first=0):
    """Clips whose sample values tell clip and place: clip number plus the share of a thousand seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        wave = number + np.arange(round(seconds * RATE)) / (1000 * RATE)
        soundfile.write(folder / f"{number:03d}.wav", wave, RATE, subtype="DOUBLE")
    return folder


def tar(path, members, form=tarfile.PAX_FORMAT):
    """A tar of (name, bytes)."""
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def audio_bytes(seed=0, form="WAV"):
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).standard_normal(3 * 8000) / 10, 8000, format=form)
    return file.getvalue()


def take(pool, count, **options):
    options = {"sample_rate": 800, "clip_seconds": 0.5, "batch_size": 4, "seed": 3} | options
    return list(itertools.islice(unlabeled_loader(pool, **options), count))


def names(pool):
    return [pool.name(index) for index in range(len(pool))]


def below(pool, folder):
    return [os.path.relpath(name, folder) for name in names(pool)]
