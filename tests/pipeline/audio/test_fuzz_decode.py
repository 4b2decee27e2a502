"""Over a thousand damaged files: each is decoded correctly or rejected, and none cut in silence.

Small files of every format are damaged in every way, from seeds. Decoded in this process (some) and
in the sandbox (all), where time and memory of each are measured as well.
"""

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from pipeline.audio.decode import decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.settings import DecodeSettings
from tests.support.audio import Samples, encode, encode_av, noise, tone

LIMITS = DecodeSettings(max_duration_s=60)
RATE_HZ = 16_000
SHORTER_S = 0.1
"""By how much decoders may differ over the end of a damaged file."""
HEADER_BYTES = 120
UNSEEN = "cut between two parts, which the format does not show"
LOST = "a part lost to changed bits in its header"
MAX_DECODE_MB, MAX_DECODE_S = 200, 10.0

Rng = np.random.Generator
Damage = Callable[[bytes, Rng], bytes]


@dataclass(frozen=True)
class Case:
    format: str
    damage: str
    data: bytes
    original: bytes
    """The file that was damaged; nothing where the file was never whole."""

    @property
    def name(self) -> str:
        return f"{self.format}, {self.damage}"


def stereo(samples: Samples) -> Samples:
    return np.stack([samples, -0.5 * samples], axis=1)


def without_xing(mp3: bytes) -> bytes:
    return mp3[mp3.index(b"\xff\xfb", 2) :]


def as_stream(flac: bytes) -> bytes:
    """A FLAC file whose header does not know the number of samples."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


FORMATS: dict[str, Callable[[Samples], bytes]] = {
    "wav int16": lambda x: encode(x, 48_000),
    "wav float": lambda x: encode(stereo(x), 48_000, "WAV", "FLOAT"),
    "wav mu-law": lambda x: encode(x, 48_000, "WAV", "ULAW"),
    "aiff": lambda x: encode(x, 48_000, "AIFF", "PCM_24"),
    "caf": lambda x: encode(x, 48_000, "CAF", "PCM_16"),
    "w64": lambda x: encode(x, 48_000, "W64", "PCM_16"),
    "rf64": lambda x: encode(x, 48_000, "RF64", "PCM_16"),
    "au": lambda x: encode(x, 48_000, "AU", "PCM_16"),
    "flac": lambda x: encode(stereo(x), 48_000, "FLAC", "PCM_16"),
    "flac stream": lambda x: as_stream(encode(x, 48_000, "FLAC", "PCM_16")),
    "ogg vorbis": lambda x: encode(x, 48_000, "OGG", "VORBIS"),
    "ogg opus": lambda x: encode(x, 48_000, "OGG", "OPUS"),
    "mp3": lambda x: encode_av(x, 48_000, "mp3", "libmp3lame"),
    "mp3 no xing": lambda x: without_xing(encode(x, 48_000, "MP3", "MPEG_LAYER_III")),
    "m4a": lambda x: encode_av(x, 48_000, "mp4", "aac"),
    "m4a fragments": lambda x: encode_av(
        x, 48_000, "mp4", "aac", movflags="frag_keyframe+empty_moov", frag_duration="200000"
    ),
    "mp4 video": lambda x: encode_av(x, 48_000, "mp4", "aac", video_codec="mpeg4"),
    "adts": lambda x: encode_av(x, 48_000, "adts", "aac"),
    "webm": lambda x: encode_av(x, 48_000, "webm", "libopus", video_codec="libvpx"),
    "webm live": lambda x: encode_av(x, 48_000, "webm", "libopus", live="1"),
    "mkv pcm": lambda x: encode_av(x, 48_000, "matroska", "pcm_s16le"),
    "sphere": lambda x: encode(x, 48_000, "NIST", "PCM_16"),
    "wavpack": lambda x: encode_av(x, 48_000, "wv", "wavpack"),
    "tta": lambda x: encode_av(x, 48_000, "tta", "tta"),
    "wma": lambda x: encode_av(x, 48_000, "asf", "wmav2", bit_rate=128_000),
    "avi": lambda x: encode_av(x, 48_000, "avi", "libmp3lame", video_codec="mpeg4"),
    "flv": lambda x: encode_av(x, 44_100, "flv", "aac"),
    "mpegts": lambda x: encode_av(x, 48_000, "mpegts", "aac"),
}
CUTS_MAY_BE_UNSEEN = (
    *("flac stream", "mp3 no xing", "m4a fragments", "adts", "webm live", "mpegts", "flv"),
)
"""Formats in which a cut exactly between two parts leaves a shorter recording that is whole."""
HAVE_NO_LENGTH = ("m4a fragments", "webm", "webm live")
"""Formats in which the last parts may go missing when bits change in the right places."""
HAVE_CHECKSUMS = ("flac", "flac stream", "ogg vorbis", "ogg opus")
FIRST_OF_TWO = (
    *("wav", "aiff", "caf", "w64", "rf64", "au", "m4a", "mp4", "webm", "mkv"),
    *("sphere", "tta", "wma", "avi", "flv"),
)
"""Formats whose header says where the recording ends; trailing bytes do not matter."""


def truncated(data: bytes, rng: Rng) -> bytes:
    return data[: rng.integers(len(data))]


def end_truncated(data: bytes, rng: Rng) -> bytes:
    return data[: -rng.integers(1, 100)]


def flipped(data: bytes, rng: Rng, *, num: int = 1, end: int | None = None) -> bytes:
    damaged = bytearray(data)
    for position in rng.integers(end or len(data), size=num):
        damaged[position] ^= 1 << rng.integers(8)
    return bytes(damaged)


def zeroed(data: bytes, rng: Rng) -> bytes:
    start, end = sorted(rng.integers(len(data), size=2))
    return data[:start] + bytes(end - start) + data[end:]


def swapped(data: bytes, rng: Rng) -> bytes:
    a, b, c, d = sorted(rng.integers(len(data), size=4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def deleted(data: bytes, rng: Rng) -> bytes:
    start, end = sorted(rng.integers(len(data), size=2))
    return data[:start] + data[end + 1 :]


def inserted(data: bytes, rng: Rng) -> bytes:
    position = rng.integers(len(data))
    return data[:position] + rng.bytes(int(rng.integers(1, 500))) + data[position:]


DAMAGES: dict[str, tuple[int, Damage]] = {
    "truncated": (16, truncated),
    "end truncated": (8, end_truncated),
    "flip": (8, flipped),
    "flip in header": (10, lambda data, rng: flipped(data, rng, end=HEADER_BYTES)),
    "many flips": (4, lambda data, rng: flipped(data, rng, num=20)),
    "zeroed": (3, zeroed),
    "swapped": (3, swapped),
    "deleted": (3, deleted),
    "inserted": (3, inserted),
    "twice": (1, lambda data, rng: data + data),
}


def damaged_files(clip: Samples, formats: list[str], seed: int) -> Iterator[Case]:
    rng = np.random.default_rng(seed)
    for name in formats:
        original = FORMATS[name](clip)
        for damage, (num, apply) in DAMAGES.items():
            for _ in range(num):
                yield Case(name, damage, apply(original, rng), original)


def wav_header(**fields: int) -> bytes:
    """A WAV of a second whose header says something else."""
    data = bytearray(encode(noise(1.0, RATE_HZ)))
    for name, value in fields.items():
        start, end = {"riff": (4, 8), "channels": (22, 24), "rate": (24, 28), "data": (40, 44)}[
            name
        ]
        data[start:end] = value.to_bytes(end - start, "little")
    return bytes(data)


def never_whole() -> Iterator[Case]:
    """Files that must be rejected."""
    nan = noise(1.0, RATE_HZ)
    nan[500] = np.nan
    flac = encode(noise(1.0, RATE_HZ), RATE_HZ, "FLAC", "PCM_16")
    ten_hours = (10 * 3_600 * RATE_HZ).to_bytes(4, "big")
    rng = np.random.default_rng(0)
    files = {
        "empty": b"",
        "zeros": bytes(50_000),
        "web page": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n" * 20,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
        "JSON": b'{"error": "AccessDenied"}',
        "picture": b"\x89PNG\r\n\x1a\n" + rng.bytes(5_000),
        "NaN": encode(nan, RATE_HZ, "WAV", "FLOAT"),
        "10 hours in WAV": wav_header(data=0x7FFE_0000),
        "10 hours in FLAC": flac[:22] + ten_hours + flac[26:],
        "0 Hz": wav_header(rate=0),
        "4 GHz": wav_header(rate=0xFFFF_FFFF),
        "no channels": wav_header(channels=0),
        "no samples": encode(np.zeros(0)),
        **{f"random {number}": rng.bytes(5_000) for number in range(20)},
        **{
            f"random after {magic!r}": magic + rng.bytes(5_000)
            for magic in (b"RIFF\x00\x00\x01\x00WAVEfmt ", b"fLaC", b"OggS", b"\xff\xfb\x90\xc4")
        },
        "random after ftyp": b"\x00\x00\x00\x1cftypisom" + rng.bytes(5_000),
        "random after EBML": b"\x1aE\xdf\xa3" + rng.bytes(5_000),
    }
    for damage, data in files.items():
        yield Case("none", damage, data, b"")


@cache
def cases() -> list[Case]:
    return [*damaged_files(clip_of(), list(FORMATS), 0), *never_whole()]


@cache
def clip_of() -> Samples:
    return tone(1.0, 48_000) + noise(1.0, 48_000, level=0.02)


Decode = Callable[[bytes], Samples]


def decode_here(data: bytes) -> Samples:
    return decode_audio(data, LIMITS, sample_rate_hz=RATE_HZ).samples


@cache
def whole(original: bytes) -> Samples:
    return decode_here(original)


def judge(case: Case, decode: Decode) -> str:
    """ "correct" or the reason of the reject; fails when the result is wrong."""
    try:
        decoded = decode(case.data)
    except RejectError as error:
        return error.reason
    assert decoded.dtype == np.float32
    assert decoded.ndim == 1
    assert np.isfinite(decoded).all()
    assert case.original, f"{case.name}: was decoded to {len(decoded)} samples"
    expected = whole(case.original)
    description = f"{case.name}: {len(decoded)} of {len(expected)} samples"
    is_truncated, is_shorter = "truncated" in case.damage, len(decoded) < len(expected)
    if is_truncated and is_shorter and case.format in CUTS_MAY_BE_UNSEEN:
        np.testing.assert_allclose(decoded[:-400], expected[: len(decoded) - 400], atol=1e-3)
        return UNSEEN
    same_header = case.data[:HEADER_BYTES] == case.original[:HEADER_BYTES]
    if case.damage == "twice":
        is_first = case.format.startswith(FIRST_OF_TWO) and np.array_equal(decoded, expected)
        assert is_first or abs(len(decoded) - 2 * len(expected)) < SHORTER_S * RATE_HZ, case.name
    elif is_truncated or (same_header and case.format in HAVE_CHECKSUMS):
        assert np.array_equal(decoded, expected), description
    else:
        lengths_s = {len(expected) / RATE_HZ}
        if not same_header:
            lengths_s.update(independent_lengths_s(case.data))
        if is_shorter and case.format in HAVE_NO_LENGTH:
            return LOST
        differences_s = {abs(len(decoded) / RATE_HZ - length_s) for length_s in lengths_s}
        assert min(differences_s) < SHORTER_S, f"{description}, not {lengths_s}"
    return "correct"


def independent_lengths_s(data: bytes) -> Iterator[float]:
    """The lengths of a damaged file by libsndfile's header and by FFmpeg at its most lenient."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            yield file.frames / file.samplerate
    except soundfile.LibsndfileError:
        pass
    try:
        with av.open(io.BytesIO(data), "r", metadata_errors="ignore") as container:
            yield sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    except (av.FFmpegError, IndexError):
        pass


def test_damaged_files_decode_correctly_or_are_rejected() -> None:
    some = cases()[::8]
    results = Counter(judge(case, decode_here) == "correct" for case in some)
    assert len(some) > 150
    assert results[True] > 20
    assert results[False] > 100


@pytest.mark.parametrize("layout", ["7.1", "hexadecagonal"])
def test_many_channels_decode_correctly(layout: str) -> None:
    channels = np.stack([clip_of()] * av.AudioLayout(layout).nb_channels, axis=1)
    for data in (
        encode(channels, 48_000, "WAV", "FLOAT"),
        encode_av(channels, 48_000, "mov", "pcm_s16le", layout=layout),
    ):
        decoded = decode_here(data)
        np.testing.assert_allclose(decoded, decode_here(encode(clip_of(), 48_000)), atol=1e-3)


@pytest.mark.parametrize(
    "name", sorted(FORMATS.keys() - {"tta"})
)  # its encoder aborts on a single sample
def test_single_sample_is_decoded_or_rejected(name: str) -> None:
    try:
        decoded = decode_here(FORMATS[name](np.full(1, 0.5, np.float32)))
    except RejectError:
        return
    assert len(decoded) < SHORTER_S * RATE_HZ


@pytest.mark.slow
def test_sandbox_survives_all_damaged_files(capsys: pytest.CaptureFixture[str]) -> None:
    table = measure(cases())
    with capsys.disabled():
        print(table)


@pytest.mark.slow
def test_sandbox_survives_damaged_real_clips(
    esc10: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for seed, path in enumerate(sorted((esc10 / "audio").glob("*.ogg"))[::40]):
        samples, _ = soundfile.read(path, dtype="float32")
        names = list(FORMATS)[seed::10]
        files += list(damaged_files(samples[:96_000], names, seed))
    table = measure(files)
    with capsys.disabled():
        print(table)


def measure(files: list[Case]) -> str:
    """Judge all files in the sandbox; returns a table of the outcomes."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    reasons: Counter[str] = Counter()
    most_mb = most_s = 0.0
    with DecoderProcess(timeout_s=MAX_DECODE_S) as decoder:

        def decode(data: bytes) -> Samples:
            return decoder.decode_audio(data, LIMITS, sample_rate_hz=RATE_HZ).samples

        decode(encode(clip_of(), 48_000))
        for case in files:
            before_mb, start_s = reset_peak_mb(decoder.pid), time.perf_counter()
            result = judge(case, decode)
            most_s = max(most_s, time.perf_counter() - start_s)
            most_mb = max(most_mb, peak_mb(decoder.pid) - before_mb)
            if result.startswith(("the decoder crashed", "decoding ")):
                reasons[f"{result} ({case.name})"] += 1
            counts[case.format, case.damage, result == "correct"] += 1
            reasons[result] += 1
    assert most_mb < MAX_DECODE_MB
    assert reasons[UNSEEN] + reasons[LOST] <= 0.005 * len(files)
    return "\n".join(
        [
            f"\n{len(files)} files: at most {most_mb:.0f} MB and {most_s:.2f} s for one",
            *table_of(counts),
            *(f"{count:6d}  {reason}" for reason, count in reasons.most_common()),
        ]
    )


def table_of(counts: Counter[tuple[str, str, bool]]) -> Iterator[str]:
    """Lines of "correct/rejected", a format a row and a damage a column."""
    formats = [name for name in FORMATS if any(key[0] == name for key in counts)]
    yield " " * 14 + "".join(f"{damage:>15}" for damage in DAMAGES)
    for name in formats:
        cells = (f"{counts[name, d, True]}/{counts[name, d, False]}" for d in DAMAGES)
        yield f"{name:14}" + "".join(f"{cell:>15}" for cell in cells)
    others = sum(count for key, count in counts.items() if key[0] == "none")
    yield f"never whole: {others} rejected"


def reset_peak_mb(pid: int | None) -> float:
    """Start measuring the most memory of a process again; what it takes now."""
    if Path(f"/proc/{pid}/clear_refs").exists():
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak_mb(pid)


def peak_mb(pid: int | None) -> float:
    """The most memory that the process took, 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
