"""Folders and shards of synthetic clips, and batches of them."""

import io
import itertools
import os
import tarfile

import numpy as np
import soundfile

from atk.data import unlabeled_loader

RATE = 1000


def ramps(folder, count, seconds=2.0, first=0):
    """Write clips whose samples identify clip and time: the clip index plus time / 1000 s."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + count):
        wave = index + np.arange(round(seconds * RATE)) / (1000 * RATE)
        soundfile.write(folder / f"{index:03d}.wav", wave, RATE, subtype="DOUBLE")
    return folder


def tar(path, members, tar_format=tarfile.PAX_FORMAT):
    """Write a tar file with members given as (name, bytes)."""
    with tarfile.open(path, "w", format=tar_format) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def audio_bytes(seed=0, file_format="WAV"):
    """Three seconds of noise as the content of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(seed).standard_normal(3 * 8000) / 10, 8000, format=file_format)
    return file.getvalue()


def take(pool, count, **options):
    """The first `count` batches of a pool."""
    options = {"sample_rate": 800, "clip_seconds": 0.5, "batch_size": 4, "seed": 3} | options
    return list(itertools.islice(unlabeled_loader(pool, **options), count))


def names(pool):
    """Names of all clips of a pool."""
    return [pool.name(index) for index in range(len(pool))]


def below(pool, folder):
    """Names of all clips of a pool, relative to `folder`."""
    return [os.path.relpath(name, folder) for name in names(pool)]
