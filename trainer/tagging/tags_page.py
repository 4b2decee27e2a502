"""The page of tags: recordings with their spectrogram, tags over time and sound.

In: complete tags, and the recordings. Steps: choose recordings, if there are too many; read those
again; render `tags_page.html.jinja`. Out: `tags.html`, one file that needs no network, except for
sounds by URL. The same tags give the same bytes.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.settings import Channel
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import to_clips
from pipeline.pages import page
from pipeline.pages.player import BITS_PER_S
from pipeline.terminal import units
from pipeline.terminal.progress import ProgressBar
from trainer.tagging.assemble import RECORDINGS, REJECTS, WINDOWS, TagCard, read_batches
from trainer.tagging.settings import check_audio_url
from trainer.tagging.source import Recordings
from trainer.tagging.strips import Strip, Wanted, read_strips
from trainer.tagging.timelines import Timeline, overview, read_timelines

PAGE = "tags.html"
MAX_RECORDINGS = 200
"""More would make a page of dozens of MB."""
MAX_STRIPS_S = 36 * 3600.0
"""Recordings are read again up to this total, as reading takes time."""
MAX_SOUND_S = 600.0
"""Of a recording whose sound is in the page."""
MAX_SOUNDS_BYTES = 8_000_000
"""Of all sounds in the page, before they are encoded as text."""
MAX_REJECTS = 200
"""Broken recordings that are listed."""

_MOST_COLUMNS, _LEAST_COLUMNS, _ALL_COLUMNS = 960, 320, 64_000
"""Width of a strip in pixels, and of all of them together."""
_TEMPLATE = Path(__file__).with_name("tags_page.html.jinja")
_STEPS_S = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800),
)
_MOST_TICKS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """A recording on the page."""

    timeline: Timeline
    strip: Strip
    address: str
    """Of its sound; empty: there is none."""
    sound_start_s: float
    """Place in the sound of the start of the timeline."""
    ticks: tuple[tuple[float, str], ...]

    @property
    def tags(self) -> list[tuple[str, float, float | None]]:
        """Each class of the timeline, with its maximum, and mean if that is known."""
        row = self.timeline.row
        means = dict(zip(row["mean_labels"], row["mean_scores"], strict=True))
        highest = zip(self.timeline.labels, row["max_scores"], strict=False)
        return [(label, score, means.get(label)) for label, score in highest]


def write_tags_page(
    output: str, recordings: Recordings, card: TagCard, audio_url: str | None = None
) -> str:
    """Draw the page of complete tags, unless it is there.

    Args:
        output: folder of the tags.
        recordings: of their source.
        card: of the tags.
        audio_url: what precedes the ids in the addresses of their sounds; None: short sounds are
            copied into the page.

    Returns:
        The path of the page.

    Raises:
        ValueError: the address cannot be used.
        UserError: a file cannot be read or written.
    """
    path = storage.join(output, PAGE)
    made_from = _fingerprint(card, audio_url)
    if _is_made_from(path, made_from):
        return path
    found = overview(
        read_batches(storage.join(output, RECORDINGS), ("recording", "max_labels", "max_scores")),
        MAX_RECORDINGS,
    )
    timelines = read_timelines(
        read_batches(storage.join(output, RECORDINGS)),
        read_batches(
            storage.join(output, WINDOWS), ("recording", "start_s", "end_s", "labels", "scores")
        ),
        found.chosen,
    )
    shown = _shown(timelines, recordings, card, audio_url)
    rejects = storage.read_table(storage.join(output, REJECTS))
    values = {
        "made_from": made_from,
        "media": "" if audio_url is None else check_audio_url(audio_url),
        "audio_url": audio_url,
        "card": card,
        "output": output,
        "tiles": _tiles(card),
        "shown": shown,
        "num_sounds": sum(bool(one.address) for one in shown),
        "classes": found.classes,
        "num_rejects": rejects.num_rows,
        "rejects": rejects.slice(0, MAX_REJECTS).to_pylist(),
        "highest_hz": card.plan.sample_rate_hz / 2,
    }
    page.write_page(path, _TEMPLATE, values)
    return path


def clock(time_s: float, decimals: int = 0) -> str:
    """A place in a recording: `0:07`, `0:07.5`, `1:02:30`."""
    units_in_s = 10**decimals
    whole_s, rest = divmod(round(time_s * units_in_s), units_in_s)
    minutes, seconds = divmod(whole_s, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{text}:{seconds:02}" + (f".{rest:0{decimals}}" if decimals else "")


def ticks(start_s: float, end_s: float) -> tuple[tuple[float, str], ...]:
    """Round times along a timeline: position in percent of its width, and text."""
    length_s = max(end_s - start_s, 1e-3)
    step_s = next((step for step in _STEPS_S if length_s / step <= _MOST_TICKS), _STEPS_S[-1])
    decimals = 0 if step_s >= 1 else 1 if step_s >= 0.1 else 2
    first, last = math.ceil(start_s / step_s - 1e-9), math.floor(end_s / step_s + 1e-9)
    return tuple(
        (100 * (number * step_s - start_s) / length_s, clock(number * step_s, decimals))
        for number in range(first, last + 1)
    )


def _shown(
    timelines: Sequence[Timeline], recordings: Recordings, card: TagCard, audio_url: str | None
) -> list[_Shown]:
    shown: list[_Shown] = []
    if not timelines:
        return shown
    with ProgressBar("spectrograms", len(timelines)) as bar:
        strips = _strips(timelines, recordings, card, with_sounds=audio_url is None)
        for timeline, strip in zip(timelines, strips, strict=True):
            bar.update(len(shown))
            is_fetched = audio_url is not None
            shown.append(
                _Shown(
                    timeline=timeline,
                    strip=strip,
                    address=f"{audio_url}{quote(timeline.recording)}"
                    if is_fetched
                    else strip.sound,
                    sound_start_s=timeline.start_s if is_fetched else 0.0,
                    ticks=ticks(timeline.edges_s[0], timeline.edges_s[-1]),
                )
            )
        bar.update(len(shown))
    return shown


def _strips(
    timelines: Sequence[Timeline], recordings: Recordings, card: TagCard, *, with_sounds: bool
) -> Iterator[Strip]:
    """A strip for each timeline; an empty one where the recordings before it took all the time."""
    num_columns = _ALL_COLUMNS // max(1, len(timelines))
    ids = pa.array([one.recording for one in timelines], pa.string())
    rows = pc.index_in(ids, value_set=recordings.clips["id"].combine_chunks())
    wanted: list[Wanted] = []
    total_s = num_bytes = 0.0
    # Reading takes long; sounds of the same number of bytes are chosen before.
    for timeline, clip in zip(timelines, to_clips(recordings.clips.take(rows)), strict=True):
        duration_s = timeline.row["duration_s"]
        total_s += duration_s
        if total_s > MAX_STRIPS_S:
            break
        size_bytes = duration_s * BITS_PER_S / 8
        has_sound = (
            with_sounds and duration_s <= MAX_SOUND_S and num_bytes + size_bytes <= MAX_SOUNDS_BYTES
        )
        num_bytes += has_sound * size_bytes
        wanted.append(
            Wanted(
                clip=clip,
                duration_s=duration_s,
                num_columns=max(_LEAST_COLUMNS, min(_MOST_COLUMNS, num_columns)),
                with_sound=has_sound,
            )
        )
    fbank = FbankSettings(sample_rate_hz=card.plan.sample_rate_hz)
    yield from read_strips(wanted, cast(Channel, card.plan.channel), fbank)
    most = (
        f"the recordings up to here are over {MAX_STRIPS_S / 3600:.0f} h long, which a page reads"
    )
    yield from [Strip(problem=most)] * (len(timelines) - len(wanted))


def _tiles(card: TagCard) -> list[dict[str, object]]:
    plan = card.plan
    num_broken = sum(card.rejects.values())
    tiles = [
        ("Recordings", units.count(card.num_recordings), ""),
        ("Audio", units.duration(card.duration_s), ""),
        ("Windows", units.count(card.num_windows), f"{plan.window_s:g} s every {plan.hop_s:g} s"),
        ("Classes", units.count(len(card.labels)), "that the model knows"),
    ]
    if num_broken:
        tiles.append(("Broken", units.count(num_broken), "could not be read to their end"))
    return [
        {"label": label, "value": value, "details": [detail] if detail else []}
        for label, value, detail in tiles
    ]


def _fingerprint(card: TagCard, audio_url: str | None) -> str:
    """Of all that decides the page but the audio."""
    document = json.dumps([asdict(card), audio_url], sort_keys=True)
    return hashlib.sha256(document.encode()).hexdigest()


def _is_made_from(path: str, fingerprint: str) -> bool:
    try:
        return f'data-made-from="{fingerprint}"'.encode() in storage.read_bytes(path)
    except FileNotFoundError:
        return False
