"""Pages of OGG files: as libsndfile writes them, cut, damaged, and with another serial number."""

import io

import numpy as np
import pytest
import soundfile

from pipeline.audio.ogg import MAGIC, checksum, examine, is_whole, pages, with_serial_zero
from pipeline.audio.rejects import RejectError


@pytest.fixture(scope="module", params=["VORBIS", "OPUS"])
def ogg(request: pytest.FixtureRequest) -> bytes:
    """Four seconds of noise."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 64_000)
    soundfile.write(buffer, noise, 16_000, format="OGG", subtype=request.param)
    return buffer.getvalue()


def test_pages_follow_each_other_to_the_end(ogg: bytes) -> None:
    offsets = list(pages(ogg))
    assert len(offsets) > 3
    assert [at for at, _ in offsets] == [0, *(end for _, end in offsets[:-1])]
    assert offsets[-1][1] == len(ogg)
    assert all(ogg.startswith(MAGIC, at) for at, _ in offsets)
    assert list(pages(ogg + b"TAG" + bytes(125))) == offsets


def test_checksum_equals_libsndfiles(ogg: bytes) -> None:
    assert all(checksum(ogg[at:end]) == ogg[at + 22 : at + 26] for at, end in pages(ogg))


def test_missing_last_page_is_noticed(ogg: bytes) -> None:
    assert is_whole(ogg)
    assert not any(is_whole(ogg[:end]) for _, end in list(pages(ogg))[:-1])
    assert not is_whole(ogg[:-1])
    assert not is_whole(b"")


def test_changed_byte_is_noticed(ogg: bytes) -> None:
    assert examine(ogg) == ([ogg], False, ())
    changed = bytearray(ogg)
    changed[len(ogg) // 2] ^= 1
    with pytest.raises(RejectError, match="cut short or damaged"):
        examine(bytes(changed))


def test_recordings_in_one_file_are_told_apart(ogg: bytes) -> None:
    recordings, is_cut, repairs = examine(ogg + ogg + ogg)
    assert recordings == [ogg] * 3
    assert not is_cut
    assert repairs == ("several recordings in one file",)
    assert examine(ogg + ogg[:-10]).is_cut
    assert examine(ogg[: list(pages(ogg))[-2][1]] + ogg).is_cut


def test_changing_the_serial_number_keeps_the_sound(ogg: bytes) -> None:
    fixed = with_serial_zero(ogg)
    assert len(fixed) == len(ogg)
    assert fixed != ogg
    assert examine(fixed).recordings == [fixed]
    assert {fixed[at + 14 : at + 18] for at, _ in pages(fixed)} == {bytes(4)}
    audio, expected = (soundfile.read(io.BytesIO(data))[0] for data in (fixed, ogg))
    np.testing.assert_array_equal(audio, expected)
