"""`prepare` and `verify` in the process of the test: one shard after the other."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline import prepare as preparing
from pipeline import verify as verifying
from pipeline.assemble import PrepareSummary
from pipeline.manifest import Manifest
from pipeline.plan import PrepareSettings
from tests.preparation import SETTINGS

Row = dict[str, Any]


def prepare(
    manifest: Manifest, output: Path | str, settings: PrepareSettings = SETTINGS, **changes: Any
) -> PrepareSummary | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "run_tasks", _run_tasks)
        options = {"session": nullcontext(), "max_reject_share": 1.0, **changes}
        return preparing.prepare(manifest, str(output), settings, **options)


def verify(path: Path | str) -> list[verifying.Fault]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "run_tasks", _run_tasks)
        return verifying.verify(str(path), session=nullcontext())


def tars(output: Path) -> dict[str, int]:
    """When each shard was written, by its name."""
    return {path.stem: path.stat().st_mtime_ns for path in (output / "shards").glob("*.tar")}


def _run_tasks(items: Sequence[Row], task: Callable[[Row], Row], **_: float) -> Iterator[Row]:
    return map(task, items)
