"""Errors with parts: one line at the terminal, and equal in another process."""

import importlib
import pickle
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest

import cluster
import pipeline
import trainer
from cluster.job_server import UnreachableError
from pipeline.audio.rejects import RejectError
from pipeline.errors import (
    PassingError,
    SettingError,
    SettingValueError,
    UserError,
    first_line,
    one_line,
)
from pipeline.manifest.layouts.hdf5_audio import DamagedPackError
from pipeline.on_ray.nodes import NoSuchNodeError
from pipeline.shards.fetch import DamagedContainerError
from pipeline.shards.plan import DamagedPlanError
from pipeline.storage.documents import DocumentError
from pipeline.storage.faults import (
    NoFileError,
    NoRegularFileError,
    ObjectStoreError,
    TooLargeError,
)
from pipeline.storage.paths import UnusableKeyError
from tests.support.errors import refused
from trainer.data.settings import AugmentSettings
from trainer.run.leaving import LeavingError, StoppedError
from trainer.run.skipped_steps import DivergedError
from trainer.serving.refusal import RefusedError
from trainer.tagging.gpu_faults import GpuError


def test_error_is_one_line_of_three_parts() -> None:
    assert str(UserError("a.csv", "no such file", "name another")) == (
        "a.csv: no such file; name another"
    )
    assert str(UserError("a.csv", "no such file")) == "a.csv: no such file"
    assert str(UserError("", "nothing to do")) == "nothing to do"
    assert str(UserError("a.csv", "broken\nat its end", "mend it")) == (
        "a.csv: broken at its end; mend it"
    )


def test_prefix_is_added_once() -> None:
    error = PassingError("s3://lab/ds/card.json", "no answer", "check the network")
    assert error.prefixed("s3://lab/ds") is error
    other = error.prefixed("s3://lab/runs/a")
    assert str(other) == "s3://lab/runs/a: s3://lab/ds/card.json: no answer; check the network"
    assert isinstance(other, PassingError)
    # A name with the same start is another path.
    assert str(UserError("runs/ab", "full").prefixed("runs/a")) == "runs/a: runs/ab: full"
    assert str(UserError("runs/a", "full").prefixed("runs/a")) == "runs/a: full"


def test_lines_of_other_errors() -> None:
    error = OSError("\n  cannot  open.\n\tIs it there?\n")
    assert one_line(error) == "cannot open. Is it there?"
    assert first_line(error) == "cannot  open"
    assert one_line(KeyError()) == first_line(KeyError()) == "KeyError"


ERRORS = [
    UserError("where", "what", "remedy"),
    UserError("where", "what"),
    PassingError("s3://lab", "no answer", "check the network"),
    SettingError("--set a.b=1", "a.b: must be 2", "take 2", setting="a.b"),
    SettingValueError("lr", "must be above 0, got -1"),
    DamagedPlanError("plan.json", ValueError("cut off"), "0f1e"),
    RefusedError(401, "needs a token", headers={"WWW-Authenticate": "Bearer"}),
    DivergedError("runs/a", "the loss is nan", "lower schedule.lr"),
    LeavingError(120, "the node ends"),
    StoppedError("runs/a", "stopped", "run the same command again"),
    GpuError("node-3", "the GPU failed: launch failure", "run the same command again to resume"),
    NoSuchNodeError("", "no room for 2 workers", "lower --workers"),
    RejectError("decode", "cut short"),
    TooLargeError("a.wav: 3 bytes, at most 2 are read"),
    UnreachableError("http://head:8265", "no job server answers", "check --address"),
    DocumentError("mean: Field required"),
    NoFileError("a.wav", "a folder, not a file", "remove it"),
    NoRegularFileError(22, "not a regular file", "pipe"),
    DamagedContainerError("truncated file"),
    DamagedPackError("truncated file"),
    UnusableKeyError("a//b: an empty segment"),
    ObjectStoreError(
        "s3://lab/a",
        status=503,
        code="SlowDown",
        text="reduce your request rate",
        endpoint="AWS",
        is_anonymous=False,
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    for name, value in vars(error).items():
        assert getattr(again, name) == value


def exceptions_of(package: ModuleType) -> Iterator[type[Exception]]:
    names = [
        module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    ]
    for name in names:
        for value in vars(importlib.import_module(name)).values():
            is_ours = isinstance(value, type) and value.__module__ == name
            if is_ours and issubclass(value, Exception) and not value.__name__.startswith("_"):
                yield value


def test_every_exception_is_covered() -> None:
    ours = {kind for package in (pipeline, trainer, cluster) for kind in exceptions_of(package)}
    missing = {kind.__name__ for kind in ours - {type(error) for error in ERRORS}}
    # Only another name for a `UserError`.
    assert missing == {"NoAudioColumnError"}


def test_value_that_is_no_choice_is_told_which_there_are() -> None:
    """As one writes them, not as Python's tuple."""
    with refused("crop", "must be one of 'first', 'random', got 'rnd'", type=SettingValueError):
        AugmentSettings(crop="rnd")  # type: ignore[arg-type]
