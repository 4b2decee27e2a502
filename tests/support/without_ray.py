"""`prepare` and `verify` in the test's process: one shard after the other."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import prepare as prepare_step
from pipeline.commands import verify as verify_step
from pipeline.dataset import compact as compacting
from pipeline.dataset import prepare as preparing
from pipeline.dataset import verify as verifying
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.manifest.manifest import Manifest
from pipeline.shards.settings import PrepareSettings
from tests.support.preparation import SETTINGS


def do_without_ray(patch: pytest.MonkeyPatch) -> None:
    """Let `prepare` and `verify`, also from the command line, call their tasks one by one."""
    for module in (preparing, compacting, verifying):
        patch.setattr(module, "run_tasks", lambda items, task, **_: map(task, items))
    for step in (prepare_step, verify_step):
        patch.setattr(step, "session", lambda _, **__: nullcontext())


def prepare(
    manifest: Manifest, output: Path | str, settings: PrepareSettings = SETTINGS, **changes: Any
) -> PrepareSummary | None:
    options = {"session": nullcontext(), "max_reject_share": 1.0, **changes}
    with pytest.MonkeyPatch.context() as patch:
        do_without_ray(patch)
        return preparing.prepare(manifest, str(output), settings, **options)


def compact(
    manifest: Manifest, output: Path | str, settings: PrepareSettings = SETTINGS
) -> PrepareSummary | None:
    with pytest.MonkeyPatch.context() as patch:
        do_without_ray(patch)
        return compacting.compact(manifest, str(output), settings, session=nullcontext())


def verify(path: Path | str) -> list[verifying.Fault]:
    with pytest.MonkeyPatch.context() as patch:
        do_without_ray(patch)
        return verifying.verify(str(path), session=nullcontext())


def tars(output: Path) -> dict[str, int]:
    """When each shard was written, by its name."""
    return {path.stem: path.stat().st_mtime_ns for path in (output / "shards").glob("*.tar")}
