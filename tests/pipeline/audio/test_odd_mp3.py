"""Odd MP3 and AAC files: without their first or last frames, with tags and other bytes between."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from pipeline.audio.frames import mp3_frame_bytes
from pipeline.audio.rejects import RejectError
from tests.support.audio import encode_av, noise, tone
from tests.support.odd_audio import (
    COUNT,
    FIRST,
    LAST,
    RATE_HZ,
    TAGS,
    assert_same_sound,
    decode,
    ffmpeg,
    sound,
)

APE_TAG = b"APETAGEX" + bytes([0xD0, 7, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xA0]) + bytes(8)
ID3_TAG = b"ID3\x04\x00\x00\x00\x00\x00\x40" + b"TIT2\x00\x00\x00\x36\x00\x00\x03" + bytes(53)


@cache
def mp3() -> bytes:
    """With a Xing header, and without a tag."""
    data = encode_av(sound(), RATE_HZ, "mp3", "libmp3lame")
    return data[data.index(b"\xff\xfb") :]


@cache
def plain_mp3() -> bytes:
    """Without a Xing header."""
    return mp3()[starts(mp3())[1] :]


def starts(data: bytes) -> list[int]:
    """Where the frames of an MP3 start."""
    offsets, offset = [], 0
    while size := mp3_frame_bytes(data, offset):
        offsets.append(offset)
        offset += size
    return offsets


def counting(frames: int, num_bytes: int = 0) -> bytes:
    """The MP3 whose Xing header counts other numbers of frames and bytes, or no bytes."""
    data, at = bytearray(mp3()), mp3().index(b"Xing" if b"Xing" in mp3() else b"Info")
    data[at + 8 : at + 12] = frames.to_bytes(4)
    data[at + 12 : at + 16] = num_bytes.to_bytes(4)
    if not num_bytes:
        data[at + 7] &= ~2
        del data[at + 12 : at + 16]
        end = starts(mp3())[1] - 4
        data[end:end] = bytes(4)
    return bytes(data)


def count() -> int:
    return len(starts(mp3())) - 1


@pytest.mark.parametrize(
    ("odd", "usual", "note"),
    [
        (lambda: bytes(700) + plain_mp3(), plain_mp3, FIRST),
        (lambda: b"\r\n\r\n" + plain_mp3(), plain_mp3, FIRST),
        (lambda: APE_TAG + plain_mp3(), plain_mp3, FIRST),
        (lambda: APE_TAG + mp3(), mp3, FIRST),
        (lambda: bytes(70_000) + mp3(), mp3, FIRST),
        (lambda: b"x" * 60_000 + mp3(), mp3, FIRST),
        (lambda: plain_mp3() + b"\n", plain_mp3, LAST),
        (lambda: mp3() + b"Downloaded from somewhere\r\n" * 40, mp3, LAST),
        (lambda: mp3() + bytes(range(255)) * 3, mp3, LAST),
        (lambda: mp3() + APE_TAG + b"z" * 2_000, mp3, LAST),
        (lambda: mp3() + b"TAG" + bytes(125), mp3, None),
        (lambda: mp3() + APE_TAG + b"TAG" + bytes(125), mp3, None),
        (lambda: mp3() + bytes(5_000), mp3, None),
        (lambda: ID3_TAG + mp3(), mp3, None),
        (lambda: ID3_TAG + ID3_TAG + mp3() + ID3_TAG, mp3, None),
        (lambda: (m := mp3())[: (s := starts(m)[20])] + ID3_TAG + m[s:], mp3, TAGS),
        (lambda: (m := plain_mp3())[: (s := starts(m)[9])] + APE_TAG + m[s:], plain_mp3, TAGS),
        (lambda: plain_mp3() + ID3_TAG + plain_mp3(), lambda: 2 * plain_mp3(), TAGS),
        (lambda: counting(0), lambda: counting(count()), COUNT),
        (lambda: counting(count() + 40, len(mp3())), lambda: counting(count()), COUNT),
    ],
)  # fmt: skip
def test_odd_mp3_gives_the_sound_of_the_usual_one(
    odd: Callable[[], bytes], usual: Callable[[], bytes], note: str | None
) -> None:
    decoded, expected = decode(odd()), decode(usual())
    assert decoded.repaired == note
    assert expected.repaired is None
    # Without a right count, FFmpeg keeps the encoder's padding at the end.
    assert 0 <= len(decoded.samples) - len(expected.samples) < (1_152 if note == COUNT else 1)
    np.testing.assert_array_equal(decoded.samples[: len(expected.samples)], expected.samples)
    if note is not None:
        with pytest.raises(RejectError, match="cut short or damaged"):
            decode(odd(), strict=True)


def test_header_that_counts_its_own_frame_is_taken() -> None:
    decoded = decode(counting(count() + 1))
    assert decoded.repaired == COUNT
    np.testing.assert_array_equal(decoded.samples[:48_000], decode(mp3()).samples[:48_000])


def test_mp3_cut_out_of_another_starts_with_its_first_whole_frame() -> None:
    data = plain_mp3()[starts(plain_mp3())[4] + 50 :]
    decoded = decode(data)
    assert decoded.repaired == FIRST
    assert_same_sound(decoded.samples, ffmpeg(data), snr_db=100)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda: mp3()[:-30],
        lambda: mp3()[: starts(mp3())[-1]],
        lambda: mp3()[: starts(mp3())[-3]],
        lambda: counting(count() + 2),
        lambda: counting(count() + 1, len(mp3()) + 100),
        lambda: plain_mp3()[:-1],
        lambda: plain_mp3() + b"\xff",
        lambda: plain_mp3() + bytes(range(255)) * 3,
        lambda: plain_mp3() + b"\xff\xfb\x90",
        lambda: (m := plain_mp3())[: starts(m)[9]] + bytes(100) + m[starts(m)[9] :],
        lambda: (m := plain_mp3())[: starts(m)[9]] + bytes(1) + m[starts(m)[9] + 1 :],
        lambda: (m := plain_mp3())[: starts(m)[9] + 20] + m[starts(m)[9] + 60 :],
    ],
)
def test_mp3_that_lacks_frames_is_rejected(damaged: Callable[[], bytes]) -> None:
    with pytest.raises(RejectError, match="cut short or damaged"):
        decode(damaged())


def test_frames_that_are_slightly_longer_than_they_say_keep_their_sound() -> None:
    """The encoder Shine writes such lengths; FFmpeg may silence nearly all of such a frame."""
    rate_hz = 16_000
    signal = tone(1.5, rate_hz) + noise(1.5, rate_hz, level=0.03)
    data = encode_av(signal, rate_hz, "mp3", "libmp3lame")
    odd = bytearray(data)
    offset, num_frames = data.index(b"\xff\xf3"), 0
    while size := mp3_frame_bytes(data, offset):
        # One channel of MPEG-2: the 4 bytes of the header, 9 bits, and 12 that hold the length.
        side_info = int.from_bytes(data[offset + 4 : offset + 8])
        if side_info >> 11 & 0xFFF:
            odd[offset + 4 : offset + 8] = (side_info - (1 << 11)).to_bytes(4)
            num_frames += 1
        offset += size
    assert num_frames > 30
    usual, ours = (decode(file, rate_hz).samples for file in (data, bytes(odd)))
    assert_same_sound(ours, usual, snr_db=20)


def adts() -> bytes:
    return encode_av(sound(), RATE_HZ, "adts", "aac")


@pytest.mark.parametrize(
    ("odd", "note"),
    [
        (lambda: bytes(300) + adts(), FIRST),
        (lambda: adts() + b"\n", LAST),
        (lambda: adts() + ID3_TAG + adts(), TAGS),
    ],
)
def test_odd_adts_gives_all_its_frames(odd: Callable[[], bytes], note: str) -> None:
    decoded, expected = decode(odd()), decode(adts())
    assert decoded.repaired == note
    np.testing.assert_array_equal(decoded.samples[: len(expected.samples)], expected.samples)
