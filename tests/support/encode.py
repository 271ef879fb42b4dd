"""Audio files that FFmpeg encodes."""

from pathlib import Path

import numpy as np


def sweep(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """Float32 `[samples, channels]`: a tone whose frequency rises, so that no two windows are alike."""
    time = np.arange(round(seconds * rate)) / rate
    tones = [0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time + channel) for channel in range(channels)]
    return np.stack(tones, 1).astype(np.float32)


def encode(
    path: Path,
    codec: str,
    audio: np.ndarray,
    rate: int,
    container: str | None = None,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    lose: range = range(0),
    delay: int = 0,
) -> Path:
    """Write `audio [samples, channels]` with an encoder of FFmpeg.

    Args:
        path: file to write.
        codec: FFmpeg's name of the encoder.
        audio: samples.
        rate: sample rate.
        container: FFmpeg's name of the container; None goes by the suffix.
        options: options of the encoder.
        muxing: options of the container.
        lose: packets to leave out.
        delay: samples to add to the timestamps.
    """
    import av

    channels = {1: "mono", 2: "stereo", 6: "5.1"}[audio.shape[1]]
    with av.open(str(path), "w", format=container, options=muxing or {}) as file:
        stream = file.add_stream(codec, rate=rate, layout=channels, options=options or {})
        coder = stream.codec_context
        coder.open()
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio.T), format="fltp", layout=channels)
        frame.sample_rate = rate
        frame.pts = 0
        resampler = av.AudioResampler(coder.format.name, channels, rate, frame_size=coder.frame_size or 1024)
        frames = resampler.resample(frame) + resampler.resample(None)
        for one in frames:
            one.pts += delay
        packets = [packet for one in [*frames, None] for packet in stream.encode(one)]
        for index, packet in enumerate(packets):
            if index not in lose:
                file.mux(packet)
    return path
