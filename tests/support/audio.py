"""Small waveforms and audio files, made in code."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.manifest.manifest import Clip

Samples = NDArray[np.float32]


def tone(duration_s: float, rate_hz: int, *, hz: float = 440.0, level: float = 0.5) -> Samples:
    """`[N]` samples of a sine."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (level * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def noise(duration_s: float, rate_hz: int, *, seed: int = 0, level: float = 0.1) -> Samples:
    """`[N]` samples of white noise."""
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(round(duration_s * rate_hz))).astype(np.float32)


def encode(
    samples: NDArray[np.floating],
    rate_hz: int = 16_000,
    container: str = "WAV",
    subtype: str = "PCM_16",
) -> bytes:
    """An audio file of `[N]` or `[N, channels]` samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


class _Pipe:
    """Cannot be sought."""

    def __init__(self, buffer: io.BytesIO) -> None:
        self.write = buffer.write


def encode_av(
    samples: NDArray[np.floating],
    rate_hz: int,
    container: str,
    codec: str,
    *,
    layout: str = "mono",
    video_codec: str | None = None,
    late_s: float = 0.0,
    bit_rate: int | None = None,
    to_pipe: bool = False,
    **options: str,
) -> bytes:
    """A file of `[N]` or `[N, channels]` samples as FFmpeg writes it, `options` to its muxer.

    The sound starts `late_s` after the picture. Into a pipe, FFmpeg cannot write the length of the
    file into its header.
    """
    frame = av.AudioFrame.from_ndarray(samples.astype(np.float32).reshape(1, -1), "flt", layout)
    frame.sample_rate, frame.pts = rate_hz, 0
    buffer = io.BytesIO()
    target = _Pipe(buffer) if to_pipe else buffer
    with av.open(target, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout=layout)
        assert isinstance(stream, av.AudioStream)
        packets = encode_video(file, video_codec, len(samples) / rate_hz) if video_codec else []
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        stream.codec_context.open()
        pieces = av.AudioResampler(
            stream.format.name, layout, rate_hz, frame_size=stream.codec_context.frame_size or 1024
        )
        for piece in [*pieces.resample(frame), *pieces.resample(None), None]:
            if piece is not None and piece.pts is not None:
                piece.pts += round(late_s * rate_hz)
            packets += stream.encode(piece)
        for packet in sorted(packets, key=lambda packet: (packet.dts or 0) * packet.time_base):
            file.mux(packet)
    return buffer.getvalue()


def encode_video(file: Any, codec: str, duration_s: float) -> list[Any]:
    """Packets of a small grey video that grows brighter."""
    stream = file.add_stream(codec, rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    packets: list[Any] = []
    for number in range(max(1, round(10 * duration_s))):
        image = np.full((48, 64, 3), 5 * number % 256, np.uint8)
        frame = av.VideoFrame.from_ndarray(image)
        frame.pts, frame.time_base = number, Fraction(1, 10)
        packets += stream.encode(frame)
    packets += stream.encode(None)
    return packets


def write_clips(
    folder: Path, num_clips: int, *, split: str = "train", duration_s: float = 0.3
) -> list[Clip]:
    """Write small WAV files of differing lengths, noise of two labels; returns their clips."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(num_clips):
        path = folder / f"{split}-{number:03d}.wav"
        path.write_bytes(encode(noise(duration_s + 0.01 * (number % 7), 16_000, seed=number)))
        label = ("dog", "rain")[number % 2]
        clips.append(
            Clip(id=f"{split}/{number}", uri=str(path), labels=(label,), split=split, fold=1)
        )
    return clips
