"""The whole way of somebody who has AudioSet in a bucket, by the commands they would run.

2,000 clips of real audio under ids of AudioSet, as plain files, in Parquet files and in tars; a
tenth is missing and a fiftieth broken. A node dies while they are prepared.
"""

import csv
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.audio.decode import decode_audio
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.files import read_manifest
from pipeline.shards.settings import PrepareSettings
from tests.conftest import make_bucket, s3_environment
from tests.support.audio import Samples, encode, encode_av
from tests.support.browser import OpenPage, open_page
from tests.support.steps import PROJECT, ray_folder, started
from tests.support.without_ray import prepare
from trainer.recipe.parse import load_recipe
from trainer.training.loop import train
from trainer.training.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

BUCKET = "s3://rehearsal"
MANIFEST, OUTPUT, RUN = (f"{BUCKET}/lab/{name}" for name in ("audioset.parquet", "audioset", "run"))
LABELS = "class_labels_indices.csv"
CSVS = {"balanced": ("balanced_train_segments.csv", 1500), "eval": ("eval_segments.csv", 500)}
FATES = {"missing": 200, "cut off": 16, "web page": 12, "empty": 12}
"""What happens to clips, and to how many of the 2,000."""
KINDS = {"flac": 44, "wav": 4, "ogg": 1, "m4a": 1}
"""Kinds of files, and how many in fifty."""
FORMS = (
    "{id}",
    "Y{id}",
    "wav/Y{id}_{start_ms}_{end_ms}",
    "Y{id}_{start_s:.0f}",
    "{split}/{id}_{start_s:.3f}_{end_s:.3f}",
    "{split}/{id:.2}/{id}",
)
"""Names of plain files."""
PARQUET, TAR = "data/{}/{:02d}.parquet", "tars/{}-{:04d}.tar"
NUM_CONTAINERS = 8
"""Parquet files of each split, and tars."""
STRANGERS = ("zzzzzzzzzzz.wav", "eval/music.mp3")
OTHERS = ("README.md", "eval/log.txt")
NUM_COMMON = 400
"""Clips of the split eval that others have scored; some of them are missing."""
RATE_HZ = 16_000
CLIP_S = 10
RECIPE = str(PROJECT / "recipes" / "demo.toml")
SMALL = (
    *("model.depth=1", "model.patch_time=16", "model.stride_time=16", "model.num_frames=1024"),
    *("data.train_split=balanced", "train.epochs=1", "train.batch_size=64"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A segment of the CSVs and the state of its audio."""

    id: str
    start_s: float
    end_s: float
    mids: tuple[str, ...]
    split: str
    fate: str
    place: str
    """files, parquet or tar."""
    kind: str
    is_common: bool

    @property
    def is_found(self) -> bool:
        """Whether a listing shows it; Parquet does not say how long a cell is."""
        return self.fate != "missing" and not self.is_unreadable

    @property
    def is_unreadable(self) -> bool:
        return self.fate == "empty" and self.place != "parquet"

    @property
    def is_rejected(self) -> bool:
        return self.is_found and self.fate != "whole"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rehearsal:
    """The content of the bucket and the output of the commands."""

    clips: list[Listed]
    labels: dict[str, str]
    """Machine ids and names, in the order of the classes."""
    plan: dict[str, Any]
    printed: dict[str, str]
    num_parts_at_kill: int
    """Shards that were finished."""


def count(clips: list[Listed], condition: Callable[[Listed], bool]) -> int:
    return sum(map(condition, clips))


# --- the bucket ----------------------------------------------------------------------------------


def cut_csv(path: Path, num_segments: int) -> tuple[str, list[list[str]]]:
    """The comments and some segments from all over an official CSV: as text, and as cells."""
    lines = path.read_text().splitlines(keepends=True)
    chosen = lines[3 :: (len(lines) - 3) // num_segments][:num_segments]
    return "".join(lines[:3] + chosen), list(csv.reader(chosen, skipinitialspace=True))


def list_clips(rows: dict[str, list[list[str]]]) -> list[Listed]:
    """The state of each segment's audio, the same in every run."""
    rng = random.Random(0)
    num_rows = sum(map(len, rows.values()))
    fates = [fate for fate, num in FATES.items() for _ in range(num)]
    fates += ["whole"] * (num_rows - len(fates))
    rng.shuffle(fates)
    return [
        Listed(
            id=cells[0],
            start_s=float(cells[1]),
            end_s=float(cells[2]),
            mids=tuple(cells[3].split(",")),
            split=split,
            fate=fates.pop(),
            place=rng.choice(("files", "parquet", "tar")),
            kind=rng.choices(list(KINDS), list(KINDS.values()))[0],
            is_common=split == "eval" and number < NUM_COMMON,
        )
        for split in rows
        for number, cells in enumerate(rows[split])
    ]


def one_recording(esc10: Path) -> Samples:
    """All clips of ESC-10, one after the other."""
    paths = sorted((esc10 / "audio").glob("*.ogg"))
    limits = DecodeSettings()
    parts = [decode_audio(p.read_bytes(), limits, sample_rate_hz=RATE_HZ) for p in paths]
    return np.concatenate([part.samples for part in parts])


def audio_file(samples: Samples, kind: str, fate: str) -> bytes:
    """A file, or a damaged version of it."""
    if fate == "empty":
        return b""
    if fate == "web page":
        return b"<!DOCTYPE html><html><body>429 Too Many Requests</body></html>"
    if kind == "m4a":
        content = encode_av(samples, RATE_HZ, "mp4", "aac")
    else:
        content = encode(samples, RATE_HZ, kind, "VORBIS" if kind == "ogg" else "PCM_16")
    return content[: len(content) * 2 // 3] if fate == "cut off" else content


def file_name(clip: Listed, form: str) -> str:
    times: dict[str, float] = {
        "start_ms": round(clip.start_s * 1000),
        "end_ms": round(clip.end_s * 1000),
    }
    times |= {"start_s": clip.start_s, "end_s": clip.end_s}
    stem = form.format(id=clip.id, split=clip.split, **times)
    return f"{stem}.{clip.kind.upper() if '_' in form else clip.kind}"


def parquet_file(clips: list[tuple[Listed, bytes]]) -> bytes:
    """As `datasets` writes audio, with its note of what the columns mean."""
    text = {"dtype": "string", "_type": "Value"}
    features = {"video_id": text, "audio": {"_type": "Audio"}, "labels": {"feature": text}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(
        {
            "video_id": [clip.id for clip, _ in clips],
            "audio": [{"bytes": data, "path": f"{clip.id}.{clip.kind}"} for clip, data in clips],
            "labels": [list(clip.mids) for clip, _ in clips],
        }
    )
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(note), sink, row_group_size=20)
    return sink.getvalue()


def tar_file(clips: list[tuple[Listed, bytes]]) -> bytes:
    """A WebDataset tar."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for clip, data in clips:
            about = json.dumps({"video_id": clip.id, "labels": clip.mids}).encode()
            for name, content in ((f"Y{clip.id}.{clip.kind}", data), (f"Y{clip.id}.json", about)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def files_of(clips: list[Listed], recording: Samples) -> Iterator[tuple[str, bytes]]:
    """Every object of the bucket that holds audio."""
    step = (len(recording) - CLIP_S * RATE_HZ) // len(clips)
    starts = range(0, len(recording), step)
    held: dict[str, list[tuple[Listed, bytes]]] = {}
    for number, (clip, start) in enumerate(zip(clips, starts, strict=False)):
        if clip.fate == "missing":
            continue
        content = audio_file(recording[start : start + CLIP_S * RATE_HZ], clip.kind, clip.fate)
        if clip.place == "files":
            yield file_name(clip, FORMS[number % len(FORMS)]), content
        else:
            form = PARQUET if clip.place == "parquet" else TAR
            held.setdefault(form.format(clip.split, number % NUM_CONTAINERS), []).append(
                (clip, content)
            )
    for name, some in held.items():
        yield name, parquet_file(some) if name.endswith(".parquet") else tar_file(some)


# --- the commands --------------------------------------------------------------------------------


def step(*arguments: str) -> str:
    """The output of a command, which must succeed."""
    with started(arguments) as process:
        printed, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return printed


@contextmanager
def two_nodes() -> Iterator[tuple[str, Callable[[], None]]]:
    """The address of a Ray of two nodes of one CPU each, and what kills the second."""
    code = (
        "import sys; from ray.cluster_utils import Cluster;"
        "cluster = Cluster(initialize_head=True, head_node_args={'include_dashboard': False});"
        "node = cluster.add_node();"
        "print(cluster.address, flush=True); sys.stdin.readline();"
        "cluster.remove_node(node, allow_graceful=False); print('killed', flush=True);"
        "sys.stdin.readline(); cluster.shutdown()"
    )
    with (
        ray_folder() as folder,
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env={**os.environ, "RAY_TMPDIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        output = process.stdout
        assert output is not None

        def kill() -> None:
            print(file=process.stdin, flush=True)
            assert output.readline() == "killed\n"

        try:
            yield output.readline().strip(), kill
        finally:
            process.communicate()


@pytest.fixture(scope="module")
def rehearsal(real_data: Path, s3_endpoint: str) -> Iterator[Rehearsal]:
    """All commands in their order, once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(s3_endpoint).items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("COLUMNS", "160")
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        make_bucket(BUCKET)
        clips, labels = fill_bucket(real_data)
        printed = {"manifest": step(*manifest_command(MANIFEST))}
        plan = step("prepare", MANIFEST, "--out", OUTPUT, "--plan", "--json-logs")
        assert list(storage.list_files(OUTPUT)) == []
        with two_nodes() as (address, kill):
            joined = ("--address", address)
            with started(["prepare", MANIFEST, "--out", OUTPUT, *joined]) as process:
                deadline = time.monotonic() + 300
                while (num_parts := len(list(storage.list_files(f"{OUTPUT}/_work/parts")))) < 8:
                    assert process.poll() is None, process.communicate()
                    assert time.monotonic() < deadline, f"{num_parts} shards within 300 s"
                    time.sleep(0.1)
                kill()
                printed["prepare"], stderr = process.communicate()
            assert process.returncode == 0, stderr
            printed["verify"] = step("verify", OUTPUT, *joined)
            train(load_recipe(RECIPE, SMALL), open_dataset(OUTPUT), RUN, world=World())
            printed["evaluate"] = step("evaluate", RUN, "--split", "eval", *joined)
        yield Rehearsal(
            clips=clips,
            labels=labels,
            plan=json.loads(plan),
            printed=printed,
            num_parts_at_kill=num_parts,
        )
        for path in storage.list_files(BUCKET):
            storage.remove(path)  # It is in the server's memory.


def fill_bucket(real_data: Path) -> tuple[list[Listed], dict[str, str]]:
    """Fill the bucket with audio and CSVs; returns the listed clips and the labels' names."""
    rows = {}
    for split, (name, num_segments) in CSVS.items():
        text, rows[split] = cut_csv(real_data / "audioset" / name, num_segments)
        storage.write_bytes(f"{BUCKET}/csv/{name}", text.encode())
    names = (real_data / "audioset" / LABELS).read_bytes()
    storage.write_bytes(f"{BUCKET}/csv/{LABELS}", names)
    clips = list_clips(rows)
    lines = [f"Y{clip.id}.wav" for clip in clips if clip.is_common]
    storage.write_bytes(f"{BUCKET}/csv/common.txt", "\n".join([*lines, "unknown"]).encode())
    for name, content in files_of(clips, one_recording(real_data / "esc10")):
        storage.write_bytes(f"{BUCKET}/clips/{name}", content)
    for name in (*STRANGERS, *OTHERS):
        storage.write_bytes(f"{BUCKET}/clips/{name}", b"something")
    table = csv.DictReader(io.StringIO(names.decode()))
    return clips, {row["mid"]: row["display_name"] for row in table}


def manifest_command(output: str) -> list[str]:
    segments = [f"--segments={BUCKET}/csv/{name}" for name, _ in CSVS.values()]
    common = ["--common-ids", f"{BUCKET}/csv/common.txt"]
    return ["manifest", f"{BUCKET}/clips", *segments, *common, "--out", output]


# --- what came of it -----------------------------------------------------------------------------


def ids(path: str) -> list[str]:
    ids: list[str] = storage.read_table(path)["id"].to_pylist()
    return ids


def table_rows(opened: OpenPage, selector: str) -> dict[str, list[str]]:
    """The cells of the rows of a page's table, by their headings."""
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    rows = opened.page.eval_on_selector_all(f"{selector} tbody tr", read)
    return {heading: cells for heading, *cells in rows}


def open_remote(path: str, folder: Path) -> AbstractContextManager[OpenPage]:
    (folder / "page.html").write_bytes(storage.read_bytes(path))
    return open_page(folder / "page.html")


def test_coverage_counts_exactly_the_written_clips(rehearsal: Rehearsal, tmp_path: Path) -> None:
    clips, labels = rehearsal.clips, rehearsal.labels
    coverage = storage.read_json(f"{OUTPUT}.coverage.json")
    expected = {
        name: {
            "listed": len(some),
            "found": count(some, lambda clip: clip.is_found),
            "missing": count(some, lambda clip: clip.fate == "missing"),
            "unreadable": count(some, lambda clip: clip.is_unreadable),
        }
        for name, some in [*by_split(clips).items(), ("total", clips)]
    }
    assert expected["total"]["missing"] == FATES["missing"]
    assert expected["total"]["unreadable"] > 0
    for name, counts in {**coverage["splits"], "total": coverage["total"]}.items():
        assert expected[name].items() <= counts.items()
    found_s = sum(clip.end_s - clip.start_s for clip in clips if clip.is_found)
    assert coverage["total"]["found_s"] == pytest.approx(found_s)
    listed = Counter(labels[mid] for clip in clips for mid in clip.mids)
    found = Counter(labels[mid] for clip in clips if clip.is_found for mid in clip.mids)
    classes = {row["label"]: (row["found"], row["official"]) for row in coverage["classes"]}
    assert classes == {name: (found[name], listed[name]) for name in labels.values()}
    common = count(clips, lambda clip: clip.is_found and clip.is_common)
    assert coverage["common"] == {"listed": NUM_COMMON + 1, "found": common}

    missing = storage.read_table(f"{OUTPUT}.missing.parquet").to_pylist()
    assert {(row["id"], row["split"], row["reason"]) for row in missing} == {
        (clip.id, clip.split, "file of 0 bytes" if clip.is_unreadable else "no file")
        for clip in clips
        if not clip.is_found
    }
    manifest = read_manifest(MANIFEST)
    assert manifest.labels == tuple(labels.values())
    rows = manifest.clips.select(["id", "split", "labels", "common"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (clip.id, clip.split, [labels[mid] for mid in clip.mids], clip.is_common)
        for clip in clips
        if clip.is_found
    ]
    assert f"left out {len(STRANGERS)} files of no listed segment" in rehearsal.printed["manifest"]
    assert f"left out {len(OTHERS)} files that are not audio" in rehearsal.printed["manifest"]

    with open_remote(f"{OUTPUT}.coverage.html", tmp_path) as opened:
        assert f"Found {expected['total']['found']:,} of 2,000 clips" in opened.page.inner_text(
            ".headline"
        )
        scored = f"({expected['eval']['found']} of 500 in the split eval)"
        assert scored in opened.page.inner_text("#splits")
        for split, cells in table_rows(opened, "#splits").items():
            assert cells[2:6] == shown(expected[split])
        rows_of_classes = table_rows(opened, "#classes").items()
        assert {name: (int(row[2]), int(row[3])) for name, row in rows_of_classes} == classes
        assert opened.errors == []


def by_split(clips: list[Listed]) -> dict[str, list[Listed]]:
    return {split: [clip for clip in clips if clip.split == split] for split in CSVS}


def shown(counts: dict[str, int]) -> list[str]:
    """Counts as pages show them."""
    return [f"{counts[name]:,}" for name in ("found", "missing", "unreadable", "listed")]


def test_plan_predicts_the_data_set(rehearsal: Rehearsal) -> None:
    plan, summary = rehearsal.plan, storage.read_json(f"{OUTPUT}/prepare_summary.json")
    assert plan["num_clips"] == count(rehearsal.clips, lambda clip: clip.is_found)
    assert plan["num_shards"] == summary["num_shards"]
    assert plan["audio_h"] == pytest.approx(summary["audio_s"] / 3600, rel=0.05)
    assert plan["read_bytes"] == pytest.approx(summary["fetched_bytes"], rel=0.15)
    assert plan["written_bytes"] == pytest.approx(summary["size_bytes"], rel=0.05)


def test_every_clip_is_prepared_or_rejected_despite_a_lost_node(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    clips = rehearsal.clips
    summary = storage.read_json(f"{OUTPUT}/prepare_summary.json")
    assert 8 <= rehearsal.num_parts_at_kill < summary["num_shards"] == summary["num_shards_built"]
    index, rejects = ids(f"{OUTPUT}/index.parquet"), ids(f"{OUTPUT}/rejects.parquet")
    assert sorted(rejects) == sorted(clip.id for clip in clips if clip.is_rejected)
    assert sorted(index) == sorted(
        clip.id for clip in clips if clip.is_found and not clip.is_rejected
    )
    everything = [*index, *rejects, *ids(f"{OUTPUT}.missing.parquet")]
    assert sorted(everything) == sorted(clip.id for clip in clips)
    assert "every byte matches the card and the index" in rehearsal.printed["verify"]

    with open_remote(f"{OUTPUT}/dataset.html", tmp_path) as opened:
        headline = opened.page.inner_text("#coverage .headline")
        assert f"Found {len(index):,} of 2,000 clips" in headline
        cells = table_rows(opened, "#coverage")
        for split, some in by_split(clips).items():
            counts = {
                "listed": len(some),
                "found": count(some, lambda clip: clip.fate == "whole"),
                "missing": count(some, lambda clip: clip.fate == "missing"),
            }
            counts["unreadable"] = counts["listed"] - counts["found"] - counts["missing"]
            assert cells[split][2:6] == shown(counts)
        numbers = opened.page.locator("#rejects tbody td.n").all_text_contents()
        assert sum(map(int, numbers)) == len(rejects)
        assert opened.page.locator(".js-plotly-plot .main-svg").count() > 0
        assert opened.page.locator("#examples img").count() == 20
        assert opened.errors == []


def test_scores_name_the_common_subset(rehearsal: Rehearsal) -> None:
    whole = [clip for clip in by_split(rehearsal.clips)["eval"] if clip.fate == "whole"]
    metrics = storage.read_json(f"{RUN}/predictions/eval.json")
    assert metrics["num_clips"] == len(whole)
    num_common = count(whole, lambda clip: clip.is_common)
    assert metrics["common"]["num_clips"] == num_common < len(whole)
    assert f"on {num_common} clips" in rehearsal.printed["evaluate"]


def test_local_data_set_is_the_same_and_takes_late_clips(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    manifest, settings = read_manifest(MANIFEST), PrepareSettings()
    prepare(manifest, tmp_path, settings)
    before = digests(str(tmp_path))
    assert before == digests(OUTPUT)

    late = [clip for clip in rehearsal.clips if clip.fate == "missing"][:20]
    silence = encode(np.zeros(CLIP_S * RATE_HZ, np.float32))
    for clip in late:
        storage.write_bytes(f"{BUCKET}/clips/late/{clip.id}.wav", silence)
    later = f"{BUCKET}/lab/later.parquet"
    step(*manifest_command(later))
    step("prepare", later, "--out", str(tmp_path), "--num-cpus", "2")
    assert sorted(set(ids(f"{tmp_path}/index.parquet")) - set(ids(f"{OUTPUT}/index.parquet"))) == (
        sorted(clip.id for clip in late)
    )
    after = digests(str(tmp_path))
    changed = {"card.json", "index.parquet"}
    assert {name for name in before if before[name] != after[name]} == changed
    assert len(after) - len(before) == len({clip.split for clip in late})
    card = storage.read_json(f"{tmp_path}/card.json")
    assert card["coverage"]["total"]["found"] == manifest.clips.num_rows + len(late)
    # Another listing of the same clips changes the card and nothing else.
    listing = replace(read_manifest(later), coverage=manifest.coverage)
    prepare(listing, tmp_path, settings)
    assert open_dataset(str(tmp_path)).card.coverage == manifest.coverage
    assert {name for name, digest in digests(str(tmp_path)).items() if digest != after[name]} == {
        "card.json"
    }


def digests(folder: str) -> dict[str, str]:
    """Hashes of the files that must be equal in every run, by name."""
    names = (path.removeprefix(f"{folder}/") for path in storage.list_files(folder))
    return {
        name: hashlib.sha256(storage.read_bytes(f"{folder}/{name}")).hexdigest()
        for name in names
        if not name.startswith("_work/") and name not in ("prepare_summary.json", "dataset.html")
    }
