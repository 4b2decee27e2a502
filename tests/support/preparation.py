"""Prepare a data set step by step in the test's process, without Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.dataset.assemble import assemble, finished_parts
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import Part
from pipeline.shards.plan import Plan, make_plan, write_plan
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.usage import Usage
from tests.support.audio import encode, noise, tone

LABELS = ("rain", "dog", "never")
SETTINGS = PrepareSettings(clips_per_shard=4)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A manifest with its plan, and the job that builds it."""

    manifest: Manifest
    plan: Plan
    job: BuildJob

    def build(self, names: Sequence[str] | None = None) -> list[Part]:
        write_plan(self.plan, self.job.work, self.manifest)
        return [
            build_shard(spec, self.job)
            for spec in self.plan.specs
            if names is None or spec.name in names
        ]

    def finish(self, *, max_reject_share: float = 1.0, built: Sequence[str] = ()) -> PrepareSummary:
        return assemble(
            self.plan,
            self.manifest,
            self.job,
            built=set(built),
            max_reject_share=max_reject_share,
            elapsed_s=lambda: 2.0,
        )

    def finished(self, *, retry_rejects: bool = False) -> set[str]:
        usage = Usage(self.plan, self.manifest)
        found = finished_parts(self.plan, self.job.output, usage=usage, retry_rejects=retry_rejects)
        return set(found)


def preparation(
    output: Path, clips: Sequence[Clip], prepare: PrepareSettings = SETTINGS, **job: Any
) -> Preparation:
    manifest = from_clips(clips, LABELS)
    return Preparation(
        manifest=manifest,
        plan=make_plan(manifest, prepare),
        job=BuildJob(
            output=str(output),
            settings=prepare,
            **job,
        ),
    )


def bad_clips(folder: Path) -> dict[str, Clip]:
    """A clip for each way to be rejected, by the "stage: reason" it gets."""
    contents: dict[str, bytes | None] = {
        "fetch: not found": None,
        "decode: the file is empty": b"",
        "decode: samples that are NaN or infinite": encode(
            np.full(16_000, np.nan), subtype="FLOAT"
        ),
        "decode: cut short or damaged": encode(noise(1.0, 16_000))[:9_000],
        "decode: longer than 600 s; --max-duration-s raises this limit": encode(
            np.zeros(601 * 1_000), 1_000, "FLAC"
        ),
        "fbank: shorter than one 25 ms frame": encode(noise(0.02, 16_000)),
        "decode: samples far outside [-1, 1]; scale them": encode(
            32_768 * tone(0.1, 16_000), subtype="FLOAT"
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    clips = {}
    for number, (reason, content) in enumerate(contents.items()):
        path = folder / f"bad-{number}"
        if content is not None:
            path.write_bytes(content)
        clips[reason] = Clip(id=f"bad {number}", uri=str(path), labels=("dog",))
    return clips


def die(*_: object, **__: object) -> None:
    """Replaces a function at which the process is interrupted."""
    raise KeyboardInterrupt


def files(folder: Path) -> dict[str, bytes]:
    """The files of a data set that must be equal in every run, so without times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_work" not in path.parts and path.name != "prepare_summary.json"
    }


def contents(folder: str) -> dict[str, bytes]:
    """The files of a data set that must be equal in every run, by name."""
    return {
        path.removeprefix(f"{folder}/"): storage.read_bytes(path)
        for path in storage.list_files(folder)
        if "/_work/" not in path and not path.endswith(("/prepare_summary.json", ".html"))
    }


def planned_ids(plan: Plan) -> list[list[str]]:
    ids, start, by_shard = plan.clips["id"].to_pylist(), 0, []
    for spec in plan.specs:
        by_shard.append(ids[start : start + spec.num_clips])
        start += spec.num_clips
    assert start == len(ids)
    return by_shard
