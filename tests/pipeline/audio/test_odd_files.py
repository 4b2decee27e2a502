"""Odd files that play: what was odd is noted, and the sound is that of the usual file.

References are the same sound in a usual file, libsndfile (with mpg123 and libvorbis in it), and
FFmpeg with its default settings, each where it is known to be right.
"""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from pipeline.audio import flac
from pipeline.audio.decode import decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings
from tests.support.audio import encode, encode_av, noise
from tests.support.odd_audio import (
    COUNT,
    FIRST,
    LAST,
    RATE_HZ,
    SEVERAL,
    assert_same_sound,
    decode,
    ffmpeg,
    sound,
)


def wav_with(size: int, after: bytes = b"") -> bytes:
    """A WAV that states that length of its samples."""
    data = bytearray(encode(sound(), RATE_HZ))
    data[40:44] = size.to_bytes(4, "little")
    return bytes(data) + after


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (wav_with(0), "no length in its header"),
        (wav_with(0xFFFFFFFF), None),
        (wav_with(0x7FFFFFFF), None),
        (wav_with(96_000, after=b"LIST\x04\x00\x00\x00abcd"), None),
        (wav_with(96_000, after=b"rest of a page"), None),
        (wav_with(96_001), None),
    ],
)
def test_odd_wav_gives_all_its_samples(data: bytes, note: str | None) -> None:
    decoded = decode(data)
    assert decoded.repaired == note
    np.testing.assert_array_equal(decoded.samples, decode(encode(sound(), RATE_HZ)).samples)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("wav", "pcm_mulaw"),
        ("au", "pcm_s16be"),
        ("caf", "pcm_s16be"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("mp3", "libmp3lame"),
        ("adts", "aac"),
        ("matroska", "pcm_s16le"),
        ("webm", "libopus"),
        ("asf", "wmav2"),
        ("avi", "pcm_s16le"),
        ("flv", "libmp3lame"),
        ("mpegts", "mp2"),
        ("wv", "wavpack"),
    ],
)
def test_files_written_into_a_pipe_are_read_to_their_end(container: str, codec: str) -> None:
    rate_hz = 44_100 if container == "flv" else 48_000
    samples = noise(1.5, rate_hz, seed=1)
    options: dict[str, Any] = {"bit_rate": 128_000 if codec == "wmav2" else None}
    data = encode_av(samples, rate_hz, container, codec, to_pipe=True, **options)
    decoded = decode(data, rate_hz)
    reference = ffmpeg(data)
    assert len(reference) >= len(samples) - 1_024
    assert decoded.repaired is None
    assert_same_sound(decoded.samples, reference, snr_db=100)


def test_aiff_written_into_a_pipe_by_sox_is_read_to_its_end() -> None:
    data = bytearray(encode(sound(), RATE_HZ, "AIFF", "PCM_16"))
    expected = decode(bytes(data)).samples
    size = data.index(b"SSND") + 4
    data[4:8], data[size : size + 4] = b"\x7f\x00\x00\x50", b"\x7f\x00\x00\x08"
    np.testing.assert_array_equal(decode(bytes(data)).samples, expected)


def two_parts() -> bytes:
    """A WAV with its samples in two parts."""
    data = wav_with(48_000)
    return data[: 44 + 48_000] + data[36:40] + (48_000).to_bytes(4, "little") + data[-48_000:]


@pytest.mark.parametrize("damaged", [wav_with(96_002), two_parts()])
def test_wav_that_lacks_samples_is_rejected(damaged: bytes) -> None:
    with pytest.raises(RejectError, match="cut short or damaged"):
        decode(damaged)


def test_stretch_of_a_wav_with_a_wrong_block_size_equals_the_whole() -> None:
    data = bytearray(encode(sound(), RATE_HZ))
    data[32:34] = (4).to_bytes(2, "little")
    whole = decode(bytes(data)).samples
    np.testing.assert_array_equal(whole, decode(encode(sound(), RATE_HZ)).samples)
    cut = decode_audio(
        bytes(data), DecodeSettings(), sample_rate_hz=RATE_HZ, start_s=0.5, end_s=1.25
    )
    np.testing.assert_array_equal(cut.samples, whole[16_000:40_000])


def test_wav_whose_length_is_0_though_parts_follow_has_no_samples() -> None:
    data = encode(np.zeros(0), RATE_HZ) + b"LIST\x04\x00\x00\x00abcd"
    with pytest.raises(RejectError, match="no samples"):
        decode(data)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_big_endian_wav_is_read(subtype: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, sound(), RATE_HZ, format="WAV", subtype=subtype, endian="BIG")
    assert buffer.getvalue().startswith(b"RIFX")
    assert_same_sound(decode(buffer.getvalue()).samples, sound(), snr_db=25)


def test_big_endian_wav_that_only_ffmpeg_reads_is_rejected() -> None:
    data = bytearray(encode(sound(), RATE_HZ, "WAV", "ULAW"))
    data[:4] = b"RIFX"
    with pytest.raises(RejectError):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        *(("WAV", name) for name in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        *(("WAV", name) for name in ("ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")),
        *(("WAVEX", name) for name in ("PCM_16", "PCM_24", "FLOAT", "ULAW")),
        *(("W64", name) for name in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "ULAW")),
        *(("RF64", name) for name in ("PCM_16", "FLOAT")),
        *(("AIFF", name) for name in ("PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        *(("AU", name) for name in ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW")),
        *(("CAF", name) for name in ("PCM_S8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        *(("NIST", name) for name in ("PCM_16", "PCM_24", "ULAW")),
        *(("FLAC", name) for name in ("PCM_S8", "PCM_16", "PCM_24")),
        ("OGG", "VORBIS"),
        ("MP3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("num_channels", [1, 2])
def test_sound_equals_libsndfiles(container: str, subtype: str, num_channels: int) -> None:
    channels = np.stack([sound(), 0.5 * sound()[::-1]], axis=1)[:, :num_channels]
    if subtype == "GSM610":
        channels = channels[:, :1]
    data = encode(channels, RATE_HZ, container, subtype)
    reference, _ = soundfile.read(io.BytesIO(data), always_2d=True)
    assert_same_sound(decode(data).samples, reference.mean(axis=1), snr_db=90)


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_f64le"])
def test_w64_as_ffmpeg_writes_it_is_read_by_its_own_coding(codec: str) -> None:
    decoded = decode(encode_av(sound(), RATE_HZ, "w64", codec))
    snr_db = 20 if codec == "pcm_u8" else 60
    assert_same_sound(decoded.samples[: len(sound())], sound(), snr_db=snr_db)


def test_flac_longer_than_its_header_says_is_decoded_to_its_end() -> None:
    data = bytearray(encode(sound(), RATE_HZ, "FLAC", "PCM_16"))
    expected = decode(bytes(data))
    assert expected.repaired is None
    for declared in (1, 4_096, 24_000, 47_999):
        data[22:26] = declared.to_bytes(4)
        decoded = decode(bytes(data))
        np.testing.assert_array_equal(decoded.samples, expected.samples)
        assert decoded.repaired == "more samples than its header counts"


@pytest.mark.parametrize("kind", [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_recordings_that_follow_each_other_are_joined(kind: tuple[str, str]) -> None:
    file_rate_hz = 16_000 if kind[1] == "OPUS" else RATE_HZ
    first, second = (encode(part, file_rate_hz, *kind) for part in (sound(), sound()[:20_000]))
    decoded = decode(first + second)
    parts = [decode(data).samples for data in (first, second)]
    assert decoded.repaired == SEVERAL
    rate_is_kept = kind[1] != "OPUS"  # Opus decodes at 48 kHz: resampling runs across the join
    if rate_is_kept:
        np.testing.assert_array_equal(decoded.samples, np.concatenate(parts))
    else:
        assert abs(len(decoded.samples) - sum(map(len, parts))) <= 1
    if rate_is_kept:
        other = encode(noise(0.5, 48_000), 24_000, *kind)
        with pytest.raises(RejectError, match="change midway"):
            decode(first + other)
    with pytest.raises(RejectError):
        decode(first + second[:-40])


@pytest.mark.parametrize("between", [b"", b"f", b"fL", b"fLa", b"fLaC", b"La", b"LaC"])
def test_flac_recordings_are_found_at_even_and_odd_places(between: bytes) -> None:
    first, second = (encode(part, RATE_HZ, "FLAC", "PCM_16") for part in (sound(), sound()[:9_000]))
    for padding in (b"", b"\0"):
        parts = [first + between + padding, second + padding, second]
        assert flac.examine(b"".join(parts)).recordings == parts


@pytest.mark.parametrize(
    ("container", "codec", "after"),
    [
        ("mp4", "aac", bytes(3_000)),
        ("mp4", "aac", b"a line of text\n"),
        ("mp4", "aac", b"\x00\x00\x00\x10abcd" + bytes(8)),
        ("mov", "pcm_s16le", bytes(7)),
        ("matroska", "aac", bytes(3_000)),
        ("webm", "libopus", b"a line of text\n"),
    ],
)
def test_bytes_behind_the_last_part_do_no_harm(container: str, codec: str, after: bytes) -> None:
    rate_hz = 48_000
    data = encode_av(noise(1.0, rate_hz), rate_hz, container, codec)
    decoded = decode(data + after, rate_hz)
    np.testing.assert_array_equal(decoded.samples, decode(data, rate_hz).samples)
    assert decoded.repaired == "bytes after its last known part"


@pytest.mark.parametrize("text", ["The free encyclopedia", "Not skip this", "so, wide and far"])
def test_text_is_no_mp4(text: str) -> None:
    with pytest.raises(RejectError, match="no known kind"):
        decode(text.encode() * 10)


def amr(num_frames: int) -> bytes:
    """Speech frames of 4.75 kbit/s with arbitrary content."""
    rng = np.random.default_rng(0)
    return b"#!AMR\n" + b"".join(b"\x04" + rng.bytes(12) for _ in range(num_frames))


def test_amr_gives_20_ms_per_frame() -> None:
    assert len(decode(amr(40), 8_000).samples) == 40 * 160


def test_shortened_sphere_is_rejected_with_a_reason() -> None:
    header = (
        "NIST_1A\n   1024\nchannel_count -i 1\nsample_count -i 8000\nsample_rate -i 16000\n"
        "sample_n_bytes -i 2\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    )
    with pytest.raises(RejectError, match=r"cannot be decoded"):
        decode(header.ljust(1_024).encode() + b"ajkg" + bytes(900), 16_000)


@pytest.mark.parametrize(
    ("name", "rate_hz", "num_samples", "note"),
    [
        ("02_gsm.wav", 8_000, 16_000, None),
        ("03_int64.wav", 8_000, 800, None),
        ("04_shine_no_xing.mp3", 44_100, 43_776, None),
        ("05_float.w64", 44_100, 13_230, None),
        ("06_vorbis.ogg", 8_000, 33_001, None),
        ("07_vbr_low.mp3", 22_050, 22_050, None),
        ("08a_zeros_before_first_frame.mp3", 8_000, 33_408, FIRST),
        ("08c_newline_at_end.mp3", 8_000, 33_408, LAST),
        ("08e_xing_plus_one.mp3", 22_050, 22_511, COUNT),
        ("08g_ape_tag_first.mp3", 8_000, 33_408, FIRST),
        ("09_data_size_0.wav", 8_000, 8_000, "no length in its header"),
        ("10_total_samples_too_small.flac", 8_000, 16_000, "more samples than its header counts"),
        ("12_theora.ogv", 44_100, 44_100, None),
    ],
)
def test_known_faults_sound_as_in_ffmpeg(
    audio_faults: Path, name: str, rate_hz: int, num_samples: int, note: str | None
) -> None:
    data = (audio_faults / name).read_bytes()
    decoded = decode(data, rate_hz)
    assert decoded.repaired == note
    assert len(decoded.samples) == num_samples
    assert_same_sound(decoded.samples, ffmpeg(data), snr_db=100)
    start, end = num_samples // 3, num_samples // 2
    cut = decode_audio(
        data,
        DecodeSettings(),
        sample_rate_hz=rate_hz,
        start_s=start / rate_hz,
        end_s=end / rate_hz,
    )
    np.testing.assert_array_equal(cut.samples, decoded.samples[start:end])


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "wav", "avi", "mpegts", "flv"])
def test_mp3_with_padding_sounds_alike_in_every_container(
    audio_faults: Path, container: str
) -> None:
    data = (audio_faults / "04_shine_no_xing.mp3").read_bytes()
    moved = io.BytesIO()
    source: Any
    target: Any
    with av.open(io.BytesIO(data)) as source, av.open(moved, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    expected = decode(data, 44_100).samples
    decoded = decode(moved.getvalue(), 44_100).samples
    size = min(len(decoded), len(expected))
    assert size >= len(expected) - 1_152
    assert_same_sound(decoded[:size], expected[:size], snr_db=100)


def test_truncated_flac_is_rejected_only_where_the_clip_reaches_the_cut(audio_faults: Path) -> None:
    data = (audio_faults / "01_truncated.flac").read_bytes()
    for start_s in (None, 0.1, 0.6, 1.9):
        with pytest.raises(RejectError):
            decode_audio(data, DecodeSettings(), sample_rate_hz=8_000, start_s=start_s)
    cut = decode_audio(data, DecodeSettings(), sample_rate_hz=8_000, start_s=0.1, end_s=0.4)
    np.testing.assert_array_equal(cut.samples, ffmpeg(data)[800:3_200])


def test_rifx_is_not_read_as_ffmpeg_does(audio_faults: Path) -> None:
    data = (audio_faults / "11_rifx.wav").read_bytes()
    reference, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    np.testing.assert_array_equal(decode(data, 8_000).samples, reference)


def test_opposite_channels_are_seen_in_the_levels() -> None:
    data = encode(np.stack([sound(), -sound()], axis=1), RATE_HZ)
    expected = decode(encode(sound(), RATE_HZ)).samples
    decoded = decode(data)
    assert np.abs(decoded.samples).max() <= 2**-15
    assert decoded.file_level_dbfs == pytest.approx(10 * np.log10(np.mean(expected**2)), abs=0.01)
    left, right = (
        decode_audio(data, DecodeSettings(channel=channel), sample_rate_hz=RATE_HZ).samples
        for channel in ("left", "right")
    )
    np.testing.assert_array_equal(left, expected)
    np.testing.assert_allclose(right, -expected, atol=2**-14)
    silence = decode(encode(np.zeros((1_000, 2)), RATE_HZ))
    assert silence.file_level_dbfs == -np.inf


def test_no_exception_of_a_decoder_leaves_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise IndexError("of a library")

    monkeypatch.setattr("pipeline.audio.ffmpeg.read_blocks", fail)
    with pytest.raises(RejectError, match=r"cannot be decoded \(IndexError in a decoder\)"):
        decode(encode_av(sound(), RATE_HZ, "mp3", "libmp3lame"))
