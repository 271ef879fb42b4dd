"""Noise clips and their features as computed by transformers."""

import torch

RATE = 48000


def clips(*lengths, rate=RATE):
    """Noise clips of the given lengths in seconds, zero-padded, and their lengths in samples."""
    lengths = torch.tensor([int(length * rate) for length in lengths])
    audio = torch.randn(len(lengths), int(lengths.max())) * 0.1
    return audio * (torch.arange(audio.shape[1]) < lengths[:, None]), lengths


def transformers_features(extractor, audio, lengths):
    rows = [row[:length].numpy() for row, length in zip(audio, lengths.tolist(), strict=True)]
    return extractor(rows, sampling_rate=RATE, return_tensors="pt")["input_features"].float()
