"""Answers are the tags of `tag`, and broken audio is one line."""

import asyncio
import base64
import io
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.audio.sandbox import DecoderProcess
from tests.support.audio import encode, noise
from tests.support.preparation import bad_clips
from tests.support.serving import LocalModel
from tests.support.tagging import RATE_HZ, Trained, sound, write_recording
from trainer.serving.decoders import Decoders
from trainer.serving.reply import Reply
from trainer.serving.request import TagRequest
from trainer.serving.settings import ServeLimits
from trainer.tagging.job import tag_in_memory
from trainer.tagging.model import Tagger
from trainer.tagging.settings import KeepSettings, TagSettings, WindowSettings
from trainer.tagging.source import list_recordings

DEFAULTS = TagSettings()
LIMITS = ServeLimits(max_duration_s=20.0, max_windows=50)


@pytest.fixture(scope="module")
def model(tagger: Tagger) -> Iterator[LocalModel]:
    made = LocalModel(tagger, LIMITS)
    yield made
    made.decoders.close()


def ask(model: LocalModel, audio: bytes, settings: TagSettings = DEFAULTS, **options: Any) -> Reply:
    return asyncio.run(model.tag(TagRequest(audio=audio, settings=settings, **options)))


def answer(model: LocalModel, *arguments: Any, **options: Any) -> dict[str, Any]:
    reply = ask(model, *arguments, **options)
    assert reply.status == 200, reply.body
    document: dict[str, Any] = json.loads(reply.body)
    return document


def expected(tagger: Tagger, path: Path, settings: TagSettings) -> dict[str, Any]:
    """What `tag` writes of a file, window by window as here."""
    clips = list_recordings(str(path)).clips_of()
    tags = tag_in_memory(tagger, clips, settings, batch_size=1)
    (row,) = tags.recordings.drop_columns(["recording", "uri"]).to_pylist()
    windows = tags.windows.drop_columns(["recording"]).to_pylist()
    document: dict[str, Any] = {**row, "windows": windows}
    return document


@pytest.mark.parametrize(
    "settings",
    [
        TagSettings(),
        TagSettings(
            windows=WindowSettings(length_s=0.4, hop_s=0.3),
            keep=KeepSettings(top=2, threshold=0.1),
            channel="right",
        ),
    ],
)
def test_answers_are_the_tags_of_tag(
    settings: TagSettings, model: LocalModel, tagger: Tagger, trained: Trained, tmp_path: Path
) -> None:
    paths = [Path(clip.uri) for clip in trained.clips[:3]]
    stereo = np.stack([sound("rain", 1.7, rate_hz=44_100), sound("dog", 1.7, rate_hz=44_100)], 1)
    for name, options in {"stereo.flac": {"container": "FLAC"}, "stereo.wav": {}}.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(encode(stereo, 44_100, **options))
    paths.append(tmp_path / "long.mp3")
    events = [("rain", 2.0), ("dog", 2.5), ("never", 3.0)]
    write_recording(paths[-1], events, container="MP3", subtype="MPEG_LAYER_III")
    for path in paths:
        found = answer(model, path.read_bytes(), settings)
        assert round_scores(found) == expected(tagger, path, settings)
    assert found["num_windows"] > 10


def round_scores(document: Any) -> Any:
    """With scores as float32, which JSON does not have."""
    if isinstance(document, dict):
        return {
            key: np.array(value, np.float32).tolist()
            if key.endswith("scores")
            else round_scores(value)
            for key, value in document.items()
        }
    return [round_scores(one) for one in document] if isinstance(document, list) else document


def test_broken_audio_gets_one_line_and_no_tags(model: LocalModel, tmp_path: Path) -> None:
    contents = {
        reason.partition(": ")[2]: Path(clip.uri).read_bytes()
        for reason, clip in bad_clips(tmp_path).items()
        if not reason.startswith(("fetch", "decode: longer"))
    }
    contents["cannot be decoded (no known kind of audio file)"] = b"hello"
    assert len(contents) >= 6
    for reason, content in contents.items():
        reply = ask(model, content)
        assert reply.status == 422
        assert json.loads(reply.body) == {"error": reason}


def test_what_is_shorter_than_a_frame_is_refused(model: LocalModel) -> None:
    reply = ask(model, encode(sound("dog", 0.02)))
    assert reply.status == 422
    assert "25 ms frame" in json.loads(reply.body)["error"]
    assert answer(model, encode(sound("dog", 0.025)))["num_windows"] == 1


def test_a_recording_beyond_the_limits_is_refused(model: LocalModel) -> None:
    assert ask(model, encode(noise(20.1, RATE_HZ))).status == 413
    wide = TagSettings(windows=WindowSettings(hop_s=0.6))
    assert answer(model, encode(noise(20.0, RATE_HZ)), wide)["num_windows"] == 34
    close = ask(model, encode(noise(20.0, RATE_HZ)), TagSettings(windows=WindowSettings(hop_s=0.1)))
    assert close.status == 413
    assert "hop" in json.loads(close.body)["error"]


def test_the_spectrogram_shows_the_whole_recording(model: LocalModel) -> None:
    document = answer(model, encode(sound("dog", 4.0)), spectrogram=True)
    head, _, text = document["spectrogram"].partition(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    num_frames = 1 + (4 * RATE_HZ - 400) // 160
    assert picture.size == (num_frames, 128)
    # The tone is where it sounds from the first to the last column.
    brightness = np.asarray(picture.convert("L"), float)
    assert len(set(brightness.argmax(axis=0)[5:-5])) <= 3


def test_requests_at_the_same_time_get_their_own_answers(
    model: LocalModel, trained: Trained
) -> None:
    contents = [Path(clip.uri).read_bytes() for clip in trained.clips]

    async def ask_all() -> list[Reply]:
        requests = [TagRequest(audio=one, settings=TagSettings()) for one in contents]
        return await asyncio.gather(*map(model.tag, requests))

    together = [json.loads(reply.body) for reply in asyncio.run(ask_all())]
    assert together == [answer(model, content) for content in contents]


CRASHING = """
import os, sys
from pipeline.audio import decode as decoding, sandbox_child
def decode(data, settings, **options):
    if data.startswith(b"crash"):
        os.abort()
    if data.startswith(b"hang"):
        while True: pass
    return decoding.decode_audio(data, settings, **options)
sandbox_child.run(int(sys.argv[1]), decode)
"""


def test_audio_that_crashes_or_hangs_its_decoder_harms_no_other() -> None:
    command = [sys.executable, "-c", CRASHING]
    start = partial(DecoderProcess, command=command, timeout_s=10.0)
    decoders = Decoders(sample_rate_hz=RATE_HZ, max_duration_s=9.0, start=start)
    whole = encode(sound("dog", 0.5))

    async def decode_all() -> list[Any]:
        contents = [b"crash", whole, b"hang", whole, b"crash", whole]
        calls = [decoders.decode(content, "mean") for content in contents]
        return await asyncio.gather(*calls, return_exceptions=True)

    try:
        results = asyncio.run(decode_all())
    finally:
        decoders.close()
    for place in (1, 3, 5):
        assert len(results[place].samples) == 8_000
    assert "crashed" in str(results[0])
    assert "longer than 10 s" in str(results[2])
