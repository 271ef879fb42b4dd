"""Readers of remote files that share a cache."""

import numpy as np

from atk.data import remote


def read_repeatedly(url, size, block, seed):
    """Compare random ranges of a file of `size` random bytes with what they should be."""
    remote._BLOCK = block
    expected = np.random.default_rng(0).bytes(size)
    file, draw = remote.RemoteFile.find(url), np.random.default_rng(seed)
    for start in draw.integers(size, size=200).tolist():
        assert file.read(start, 3 * block) == expected[start : start + 3 * block]
