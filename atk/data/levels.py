"""Levels of the sounds in a mixture."""

from torch import Tensor


def snr_gain(clip: Tensor, added: Tensor, snr_db: float | None) -> float:
    """Gain for `added` `[S]` such that the power of `clip` `[S]` is `snr_db` dB above that of the scaled sound.

    Powers are means over the samples that aren't exactly zero, so silence around a sound doesn't count. The gain is 1
    if the clip or the sound is silent, and if `snr_db` is None, which keeps all levels as they are.
    """
    if snr_db is None:
        return 1.0
    powers = [power(x) for x in (clip, added)]
    return (powers[0] / powers[1] * 10 ** (-snr_db / 10)) ** 0.5 if min(powers) > 0 else 1.0


def power(audio: Tensor) -> float:
    """Mean power over the samples that aren't exactly zero."""
    return float(audio.square().sum()) / max(1, int(audio.count_nonzero()))


def overload(audio: Tensor, snr_db: float | None) -> float:
    """Factor to divide by so that no sample exceeds full scale; 1 if `snr_db` is None."""
    return 1.0 if snr_db is None else max(1.0, float(audio.abs().max()))
