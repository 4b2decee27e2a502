"""Tags made in code, as `tag` writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.audio.rejects import Ledger, Reject, count_reasons
from tests.support.audio import encode, noise, tone
from trainer.tagging.assemble import CARD, RECORDINGS, REJECTS, WINDOWS, TagCard, TagPlan
from trainer.tagging.rows import Layout
from trainer.tagging.settings import KeepSettings
from trainer.tagging.source import Recordings, list_recordings

RATE_HZ = 16_000
Window = tuple[float, float, Mapping[str, float]]
"""Start and end in seconds, and scores by label, the highest first."""


STEADY: list[Window] = [(0.0, 2.0, {"dog": 0.9}), (1.0, 3.0, {"dog": 0.5, "rain": 0.25})]


def write_tags(
    folder: Path,
    recordings: Mapping[str, Sequence[Window]],
    *,
    uris: Mapping[str, str] | None = None,
    rates_hz: Mapping[str, int] | None = None,
    faults: Mapping[str, str] | None = None,
    rejects: Sequence[Reject] = (),
    labels: Sequence[str] | None = None,
    rows_per_group: int = 3,
    **plan: Any,
) -> TagCard:
    """Complete tags of recordings, in several row groups."""
    uris, rates_hz, faults = uris or {}, rates_hz or {}, faults or {}
    layout = Layout(labels=(), sample_rate_hz=RATE_HZ, keep=KeepSettings())
    windows = [
        {
            "recording": name,
            "start_s": start_s,
            "end_s": end_s,
            "labels": list(tags),
            "scores": list(tags.values()),
        }
        for name, own in recordings.items()
        for start_s, end_s, tags in own
    ]
    rows: list[dict[str, Any]] = []
    for name, own in recordings.items():
        highest: dict[str, float] = {}
        for _, _, tags in own:
            for label, score in tags.items():
                highest[label] = max(score, highest.get(label, 0.0))
        ordered = dict(sorted(highest.items(), key=lambda item: -item[1]))
        rows.append(
            {
                "recording": name,
                "uri": uris.get(name, f"/no/such/{name}"),
                "duration_s": own[-1][1] - own[0][0],
                "file_rate_hz": rates_hz.get(name, RATE_HZ),
                "num_windows": len(own),
                "fault": faults.get(name),
                "max_labels": list(ordered),
                "max_scores": list(ordered.values()),
                "mean_labels": list(ordered),
                "mean_scores": [score / 2 for score in ordered.values()],
            }
        )
    write_rows(folder / WINDOWS, windows, layout.windows, rows_per_group)
    write_rows(folder / RECORDINGS, rows, layout.recordings, rows_per_group)
    ledger = Ledger()
    ledger.add(rejects)
    table = ledger.table()
    storage.write_table(str(folder / REJECTS), table)
    seen = dict.fromkeys(label for row in rows for label in row["max_labels"])
    card = TagCard(
        plan=make_plan(**plan),
        labels=list(labels or seen),
        num_recordings=len(rows),
        num_windows=len(windows),
        duration_s=sum(row["duration_s"] for row in rows),
        rejects=count_reasons(table),
        low_rates={},
    )
    storage.write_json(str(folder / CARD), asdict(card))
    return card


def make_plan(**changes: Any) -> TagPlan:
    """A plan of windows of 2 s, a second apart."""
    values: dict[str, Any] = {
        "source": "/recordings",
        "source_fingerprint": "s",
        "model": "/runs/mine",
        "model_fingerprint": "m",
        "num_classes": 3,
        "sample_rate_hz": RATE_HZ,
        "window_s": 2.0,
        "hop_s": 1.0,
        "channel": "mean",
        "top": 5,
        "threshold": None,
        "all_scores": False,
        "embeddings": False,
    }
    return TagPlan(**values | changes)


def write_rows(path: Path, rows: Sequence[Any], schema: pa.Schema, rows_per_group: int) -> None:
    """A Parquet file of several row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, path, row_group_size=rows_per_group)


def write_audio(folder: Path, name: str, duration_s: float = 3.0, hz: float = 440.0) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = tone(duration_s, RATE_HZ, hz=hz) + noise(duration_s, RATE_HZ, level=0.01)
    path.write_bytes(encode(samples))


def make_tags(
    folder: Path,
    tags: dict[str, list[Window]],
    *,
    rejects: Sequence[Reject] = (),
    faults: dict[str, str] | None = None,
) -> tuple[str, Recordings, TagCard]:
    """Tags in `folder/tags`, of recordings in `folder/in`."""
    for name, windows in tags.items():
        write_audio(folder / "in", name, windows[-1][1])
    card = write_tags(
        folder / "tags", tags, rejects=rejects, faults=faults, source=str(folder / "in")
    )
    return str(folder / "tags"), list_recordings(str(folder / "in")), card
