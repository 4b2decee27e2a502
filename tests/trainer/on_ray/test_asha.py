"""ASHA stops runs of a search: they end with a checkpoint, free all they held, and stay stopped."""

import asyncio
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.schedulers import TrialScheduler
from ray.util import placement_group_table

import ray_job
from pipeline.dataset.prepared import PreparedDataset
from tests.support.nodes import wait_for
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.runs import newest
from tests.support.steps import own_lines, started, wait_for_step
from trainer.checkpoints.progress import EpochResult
from trainer.on_ray.board import Referee
from trainer.on_ray.search import Asha
from trainer.run.history import is_finished, read_history
from trainer.studies.search.record import AshaSettings, SearchRecord, is_stopped, read_record

RECIPE = tiny_recipe(
    train={"epochs": 4, "loss": "ce", "log_every_steps": 1, "checkpoint_every_s": 0},
    schedule={"warmup_steps": 0, "warmup_every_steps": 1, "decay_after_epochs": [3]},
)
GOOD, BAD = 2e-3, 1e-9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def command(folder: Path, dataset: PreparedDataset) -> list[str]:
    """A good learning rate, and then one that learns nothing."""
    recipe = str(write_recipe(folder / "tiny.toml", RECIPE))
    options = ["--strategy", "asha", "--factor", "2", "--seed", "3", "--at-once", "1"]
    options += ["--space", f"schedule.lr={GOOD},{BAD}", "--num-cpus", "2"]
    output = str(folder / "search")
    return ["search", recipe, "--data", dataset.path, "--out", output, *options]


def record_in(folder: Path) -> SearchRecord:
    record = read_record(str(folder / "search"))
    assert record is not None
    assert [run.settings["schedule.lr"] for run in record.trials] == [GOOD, BAD]
    return record


def results(*scores: float) -> list[dict[str, Any]]:
    return [{"epoch": epoch, "score": score} for epoch, score in enumerate(scores, start=1)]


def decisions(asha: Asha, run: Path, *scores: float) -> list[str]:
    """What ASHA says after each epoch of a run, until it stops it."""
    trial: Any = SimpleNamespace(trial_id=str(run), config={"run": str(run)})
    controller: Any = None
    asha.on_trial_add(controller, trial)
    made = []
    for result in results(*scores):
        made.append(asha.on_trial_result(controller, trial, result))
        if made[-1] == TrialScheduler.STOP:
            break
    return made


def test_run_that_is_worse_is_stopped_and_marked(tmp_path: Path) -> None:
    asha = Asha(AshaSettings(first_epoch=1, factor=2), num_epochs=4)
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    goes_on, stop = TrialScheduler.CONTINUE, TrialScheduler.STOP
    assert decisions(asha, first, 0.5, 0.6, 0.7)[:3] == [goes_on] * 3
    assert decisions(asha, second, 0.4) == [stop]
    assert decisions(asha, third, 0.6, 0.5) == [goes_on, stop]
    assert [is_stopped(str(run)) for run in (first, second, third)] == [False, True, True]


def test_runs_that_ended_before_count_in_comparisons(tmp_path: Path) -> None:
    asha = Asha(AshaSettings(first_epoch=2, factor=2), num_epochs=4)
    asha.add_past("/runs/before", results(0.1, 0.5, 0.6, 0.7))
    assert decisions(asha, tmp_path, 0.9, 0.4) == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


def test_end_of_the_last_epoch_is_no_stop(tmp_path: Path) -> None:
    asha = Asha(AshaSettings(), num_epochs=2)
    assert decisions(asha, tmp_path, 0.5, 0.4)[-1] == TrialScheduler.STOP
    assert not is_stopped(str(tmp_path))


def test_referee_answers_the_newest_question() -> None:
    async def ask() -> None:
        referee = Referee()
        result = EpochResult(epoch=1, step=1, mAP=0.5, accuracy=0.5)
        lost = asyncio.ensure_future(referee.ask("a", result))
        assert await referee.next_result("a") == result
        again = asyncio.ensure_future(referee.ask("a", result))
        other = asyncio.ensure_future(referee.ask("b", result))
        await referee.next_result("a")
        await referee.go_on("a")
        assert await again
        assert not lost.done()
        assert not other.done()
        lost.cancel()
        later = asyncio.ensure_future(referee.ask("a", result))
        await referee.next_result("a")
        await referee.stop("a")
        assert not await later
        assert not await referee.ask("a", result), "nor any later one"
        await referee.stop("b")
        assert not await other

    asyncio.run(ask())


def groups() -> list[str]:
    """Placement groups that hold resources."""
    found = placement_group_table().values()
    return [group["name"] for group in found if group["state"] != "REMOVED"]


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_stopped_run_frees_its_workers_and_is_not_trained_again(
    dataset: PreparedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ray_job.main(command(tmp_path, dataset)) == 0
    record = record_in(tmp_path)
    assert [run.state for run in record.trials] == ["finished", "stopped"]
    assert [run.epochs for run in record.trials] == [4, 1]
    assert record.best == 1
    stopped = str(tmp_path / "search" / record.trials[1].folder)
    assert newest(stopped).progress.epoch == 2, "with a checkpoint of its epoch"
    assert "stopped" in capfd.readouterr().out
    wait_for(lambda: not groups() and ray.available_resources().get("CPU") == 2, 60)

    written = Path(stopped, "history.json").stat().st_mtime_ns
    assert ray_job.main(command(tmp_path, dataset)) == 0
    assert record_in(tmp_path) == record
    assert Path(stopped, "history.json").stat().st_mtime_ns == written
    # It is no other run for having been stopped.
    recipe = str(tmp_path / "search" / "best.toml")
    options = [f"--set=schedule.lr={BAD}", "--set=data.fold=1", "--out", stopped]
    assert ray_job.main(["train", recipe, "--data", dataset.path, *options]) == 0
    assert is_finished(stopped)
    assert ray_job.main(command(tmp_path, dataset)) == 0
    assert [run.state for run in record_in(tmp_path).trials] == ["finished", "finished"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_search_resumes(dataset: PreparedDataset, tmp_path: Path) -> None:
    """The first run has two of its epochs; the second has not begun."""
    arguments = command(tmp_path, dataset)
    first = tmp_path / "search" / "001-lr-0.002"
    with started(arguments) as process:
        # One step more than two epochs have: their history is written after their checkpoint.
        wait_for_step(process, first, 7)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [run.state for run in record_in(tmp_path).trials] == ["waiting", "waiting"]
    assert read_history(str(first)).epochs

    with started(arguments) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert [line for line in own_lines(errors) if "error" in line] == []
    record = record_in(tmp_path)
    assert [(run.state, run.epochs) for run in record.trials] == [("finished", 4), ("stopped", 1)]
    assert "best.toml" in output
