"""Decoding in a child process: the same samples, and every way in which the child can die."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from pipeline.audio.decode import decode_audio
from pipeline.audio.recording import decode_stream
from pipeline.audio.rejects import RejectError
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.settings import DecodeSettings
from tests.support.audio import encode, noise, tone

LIMITS = DecodeSettings()
GOOD = encode(tone(0.5, 22_050), 22_050)
LONG = encode(noise(600.0, 16_000, seed=1), 16_000, "FLAC", "PCM_16")
"""Decoded in several blocks."""

# A child that does what the first bytes of a clip say, and decodes all others.
SABOTEUR = """
import ctypes, os, signal, sys, time
import numpy as np
from pipeline.audio.decode import decode_audio
from pipeline.audio.recording import decode_stream
from pipeline.audio.sandbox_child import run

def decode(data, settings, **options):
    if data == b"segfault":
        ctypes.string_at(0)
    elif data == b"abort":
        os.abort()
    elif data == b"sleep":
        time.sleep(60)
    elif data == b"eat":
        hoard = [np.ones(2**20) for _ in range(10_000)]
    elif data == b"print":
        os.write(1, b"noise of a library\\n")
    elif data == b"bug":
        raise LookupError
    elif data.startswith(b"once ") and not os.path.exists(data[5:]):
        open(data[5:], "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_audio(GOOD if data[:4] in (b"prin", b"once") else data, settings, **options)

def stream(source, settings, **options):
    if not isinstance(source, bytes):
        yield from decode_stream(source, settings, **options)
        return
    action, _, path = source.partition(b" ")
    for number, block in enumerate(decode_stream(LONG, settings, **options)):
        if number == 1 and not (path and os.path.exists(path)):
            if path:
                open(path, "x").close()
            decode(action, settings, **options)
        yield block

GOOD, LONG = bytes.fromhex("%s"), bytes.fromhex("%s")
run(int(sys.argv[1]), decode, stream)
"""


@pytest.fixture
def saboteur(tmp_path: Path) -> Sequence[str]:
    script = tmp_path / "saboteur.py"
    script.write_text(SABOTEUR % (GOOD.hex(), LONG.hex()))
    return sys.executable, "-W", "ignore", str(script)


def reason_for(decoder: DecoderProcess, data: bytes) -> str:
    with pytest.raises(RejectError) as caught:
        decoder.decode_audio(data, LIMITS, sample_rate_hz=16_000)
    assert caught.value.stage == "decode"
    return caught.value.reason


def decodes(decoder: DecoderProcess, data: bytes = GOOD) -> bool:
    decoded = decoder.decode_audio(data, LIMITS, sample_rate_hz=16_000)
    expected = decode_audio(GOOD, LIMITS, sample_rate_hz=16_000)
    return np.array_equal(decoded.samples, expected.samples)


def blocks_of(
    decoder: DecoderProcess, source: bytes | BinaryIO, *, start_s: float | None = None
) -> Iterator[bytes]:
    for block in decoder.decode_stream(source, LIMITS, sample_rate_hz=8_000, start_s=start_s):
        yield block.samples.tobytes()


def blocks_here(source: bytes | BinaryIO, *, start_s: float | None = None) -> list[bytes]:
    blocks = decode_stream(source, LIMITS, sample_rate_hz=8_000, start_s=start_s)
    return [block.samples.tobytes() for block in blocks]


def test_one_child_decodes_many_clips_bit_identically() -> None:
    rng = np.random.default_rng(0)
    with DecoderProcess() as decoder:
        for seed in range(40):
            rate_hz = int(rng.choice([8_000, 16_000, 44_100]))
            clip = noise(rng.uniform(0.2, 2), rate_hz, seed=seed)
            data = encode(clip, rate_hz, *[("WAV", "FLOAT"), ("OGG", "VORBIS")][seed % 2])
            start_s = float(rng.uniform(0, 0.1))
            options: dict[str, Any] = {
                "sample_rate_hz": 16_000,
                "start_s": start_s,
                "end_s": start_s + 1 / 3,
            }
            decoded = decoder.decode_audio(data, LIMITS, **options)
            expected = decode_audio(data, LIMITS, **options)
            assert decoded.samples.flags.writeable
            assert decoded.samples.tobytes() == expected.samples.tobytes()
            assert replace(decoded, samples=expected.samples) == expected
        assert decoder.num_starts == 1


def test_child_rejects_and_limits_as_this_process_does() -> None:
    with DecoderProcess() as decoder:
        assert reason_for(decoder, b"") == "the file is empty"
        assert reason_for(decoder, GOOD[:-100]) == "cut short or damaged"
        with pytest.raises(RejectError, match=r"\b0\.25 s; --max-duration-s\b"):
            decoder.decode_audio(GOOD, DecodeSettings(max_duration_s=0.25), sample_rate_hz=16_000)
        assert decodes(decoder)
        assert decoder.num_starts == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"segfault", "the decoder crashed (SIGSEGV)"),
        (b"abort", "the decoder crashed (SIGABRT)"),
        (b"bug", "the decoder crashed (exit status 1)"),
    ],
)
def test_crash_rejects_its_clip_but_not_the_next(
    saboteur: Sequence[str], data: bytes, reason: str
) -> None:
    with DecoderProcess(command=saboteur) as decoder:
        assert decodes(decoder)
        assert reason_for(decoder, data) == reason
        assert decodes(decoder)
        assert decoder.num_starts == 3  # it is tried twice


def test_slow_clip_is_rejected(saboteur: Sequence[str]) -> None:
    with DecoderProcess(command=saboteur, timeout_s=2) as decoder:
        assert reason_for(decoder, b"sleep") == "decoding took longer than 2 s"
    with DecoderProcess(command=saboteur) as decoder:
        assert decodes(decoder)


def test_clip_needing_too_much_memory_is_rejected(saboteur: Sequence[str]) -> None:
    with DecoderProcess(command=saboteur, memory_bytes=2**29) as decoder:
        assert reason_for(decoder, b"eat") == "decoding needed more memory than allowed"
        assert decodes(decoder)
        assert decoder.num_starts == 1


def test_output_of_libraries_is_ignored(saboteur: Sequence[str]) -> None:
    with DecoderProcess(command=saboteur) as decoder:
        assert decodes(decoder, b"print")
        assert decodes(decoder)


def test_killing_the_child_costs_no_clip(saboteur: Sequence[str], tmp_path: Path) -> None:
    with DecoderProcess(command=saboteur) as decoder:
        assert decodes(decoder, b"once " + bytes(tmp_path / "mark"))  # killed at work
        assert decoder.num_starts == 2
        assert decoder.pid is not None
        os.kill(decoder.pid, signal.SIGKILL)  # killed between two clips
        assert decodes(decoder)
        assert decoder.num_starts == 3


def test_no_child_outlives_the_sandbox(saboteur: Sequence[str]) -> None:
    with DecoderProcess(command=saboteur) as decoder:
        assert decodes(decoder)
        pid = decoder.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_child_that_cannot_start_rejects_no_clip() -> None:
    with (
        DecoderProcess(command=[sys.executable, "-c", "raise SystemExit(3)"]) as decoder,
        pytest.raises(RuntimeError, match="exit status 3"),
    ):
        decoder.decode_audio(GOOD, LIMITS, sample_rate_hz=16_000)


def test_child_whose_parent_ends_at_once_says_nothing() -> None:
    """As of a step that is refused while the child starts."""
    command = [sys.executable, "-m", "pipeline.audio.sandbox_child", str(2**31)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as child:  # type: ignore[call-overload]
        child.stdout.close()
        child.stdin.close()
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_the_child_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys, pipeline.audio.sandbox_child\n"
        "print([name for name in ('torch', 'ray', 'torchaudio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_recordings_are_streamed_bit_identically() -> None:
    resampled = encode(noise(3.0, 44_100, seed=2), 44_100)
    with DecoderProcess() as decoder:
        for source in (LONG, resampled, GOOD):
            for start_s in (None, 0.25):
                expected = blocks_here(source, start_s=start_s)
                assert list(blocks_of(decoder, source, start_s=start_s)) == expected
        assert len(blocks_here(LONG)) > 3
        assert decoder.num_starts == 1


@pytest.mark.parametrize("data", [LONG, encode(noise(100.0, 44_100, seed=3), 44_100)])
def test_large_files_are_read_through_the_parent(data: bytes) -> None:
    with DecoderProcess() as decoder:
        for start_s in (None, 40.0):
            found = list(blocks_of(decoder, io.BytesIO(data), start_s=start_s))
            assert found == blocks_here(io.BytesIO(data), start_s=start_s)
        assert decoder.num_starts == 1


def test_faults_of_the_storage_come_through() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise PermissionError("no entry")

    with DecoderProcess() as decoder:
        with pytest.raises(PermissionError, match="no entry"):
            list(blocks_of(decoder, Broken(LONG)))
        assert decodes(decoder)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"segfault", "the decoder crashed (SIGSEGV)"),
        (b"bug", "the decoder crashed (exit status 1)"),
        (b"sleep", "decoding took longer than 10 s"),
    ],
)
def test_crash_within_a_recording_keeps_what_precedes(
    saboteur: Sequence[str], data: bytes, reason: str
) -> None:
    with DecoderProcess(command=saboteur, timeout_s=10) as decoder:
        blocks = blocks_of(decoder, data)
        assert next(blocks) == blocks_here(LONG)[0]
        with pytest.raises(RejectError) as caught:
            next(blocks)
        assert (caught.value.stage, caught.value.reason) == ("decode", reason)
        assert decodes(decoder)


def test_child_killed_within_a_recording_costs_nothing(
    saboteur: Sequence[str], tmp_path: Path
) -> None:
    with DecoderProcess(command=saboteur) as decoder:
        found = list(blocks_of(decoder, b"segfault " + bytes(tmp_path / "mark")))
        assert found == blocks_here(LONG)
        assert decoder.num_starts == 2


def test_recording_that_is_not_wanted_to_its_end() -> None:
    with DecoderProcess() as decoder:
        blocks = decoder.decode_stream(LONG, LIMITS, sample_rate_hz=8_000)
        next(blocks)
        blocks.close()
        assert decodes(decoder)
        assert list(blocks_of(decoder, LONG)) == blocks_here(LONG)
