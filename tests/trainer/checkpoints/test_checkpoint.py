"""Checkpoints: atomic, the newest intact one is loaded, and no code of theirs is run."""

import io
import pickle
import random
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from pipeline import storage
from pipeline.errors import UserError
from tests.support.errors import refused
from tests.support.special_files import REPLACED
from trainer.checkpoints.checkpoint import (
    NUM_KEPT,
    Background,
    Checkpoint,
    load_newest,
    save_checkpoint,
)
from trainer.checkpoints.paths import checkpoint_paths
from trainer.checkpoints.progress import CurvePoint, EpochResult, Progress, SkippedStep


def make_checkpoint(step: int) -> Checkpoint:
    """As after `step` steps of Adam on a small model."""
    torch.manual_seed(step)
    model = torch.nn.Linear(40, 30)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.95, 0.999))
    model(torch.randn(2, 40)).sum().backward()
    optimiser.step()
    progress = Progress(epoch=2, epoch_step=3, step=step, loss_sum=1 / 3, num_clips=7, train_s=1e-9)
    progress.steps.append(CurvePoint(step=step, epoch=2, loss=0.1 + 0.2, lr=1e-5))
    progress.epochs.append(EpochResult(epoch=1, step=1, mAP=None, accuracy=0.5))
    progress.bad_steps.append(
        SkippedStep(step=1, epoch=1, loss="nan", grad_norm=0.5, ids=("a",), partner_ids=("b",))
    )
    return Checkpoint(
        model=model.state_dict(),
        optimiser=optimiser.state_dict(),
        progress=progress,
        ema={"weight": torch.randn(3)},
        scaler={"scale": 65536.0, "_growth_tracker": 3},
        score_sum=torch.randn(4, 3),
    )


def assert_equal(loaded: Checkpoint | None, saved: Checkpoint) -> None:
    assert loaded is not None
    assert asdict(loaded.progress) == asdict(saved.progress)
    assert loaded.model.keys() == saved.model.keys()
    for name, value in saved.model.items():
        assert torch.equal(loaded.model[name], value)
    assert torch.equal(loaded.ema["weight"], saved.ema["weight"])
    assert loaded.scaler == saved.scaler
    assert loaded.score_sum is not None
    assert saved.score_sum is not None
    assert torch.equal(loaded.score_sum, saved.score_sum)
    assert loaded.optimiser["param_groups"] == saved.optimiser["param_groups"]
    for number, state in saved.optimiser["state"].items():
        for name, value in state.items():
            assert torch.equal(loaded.optimiser["state"][number][name], value)


def assert_round_trip_and_pruning(run: str) -> None:
    assert load_newest(run) is None
    # In steps of digits, so that an order of the names as text alone would fail.
    steps = [9, 10, 99, 100, 123456]
    for step in steps:
        path = save_checkpoint(run, make_checkpoint(step))
        assert_equal(load_newest(run), make_checkpoint(step))
        assert checkpoint_paths(run)[-1] == path
    kept = [f"{run}/checkpoints/step-{step:08d}.pt" for step in steps[-NUM_KEPT:]]
    assert checkpoint_paths(run) == storage.list_files(run) == kept


def test_checkpoints_round_trip_and_are_pruned(tmp_path: Path) -> None:
    assert_round_trip_and_pruning(str(tmp_path))


def test_checkpoints_round_trip_in_a_bucket(s3: str) -> None:
    run = f"{s3}/runs/one"
    assert_round_trip_and_pruning(run)
    storage.write_bytes(checkpoint_paths(run)[-1], b"")
    assert_equal(load_newest(run), make_checkpoint(100))


def test_other_files_are_not_taken_as_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(str(tmp_path), make_checkpoint(1))
    folder = tmp_path / "checkpoints"
    # What a write that was killed leaves behind.
    (folder / ".step-00000002.pt.123.0badcafe").write_bytes(b"half")
    (folder / "step-00000003.pt.bak").write_bytes(b"")
    assert_equal(load_newest(str(tmp_path)), make_checkpoint(1))


def damaged(content: bytes, kind: str) -> bytes:
    middle = len(content) // 2
    if kind == "flipped bit":
        return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    return {
        "empty": b"",
        "zeros": bytes(len(content)),
        "cut in half": content[:middle],
        "last byte missing": content[:-1],
        "hole": content[: middle - 200] + bytes(400) + content[middle + 200 :],
        "text": b"not found\n",
        "another torch file": torch_file({"step": 1}),
    }[kind]


def torch_file(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        "empty",
        "zeros",
        "cut in half",
        "last byte missing",
        "flipped bit",
        "hole",
        "text",
        "another torch file",
    ],
)
def test_damaged_newest_checkpoint_falls_back_to_the_previous(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = str(tmp_path)
    save_checkpoint(run, make_checkpoint(10))
    newest = save_checkpoint(run, make_checkpoint(20))
    storage.write_bytes(newest, damaged(storage.read_bytes(newest), kind))
    assert_equal(load_newest(run), make_checkpoint(10))
    [line] = caplog.messages
    assert line.startswith(f"{newest}: ")
    assert "damaged" in line


@pytest.mark.parametrize("kind", REPLACED)
def test_checkpoint_that_is_no_file_counts_as_damaged(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = str(tmp_path)
    save_checkpoint(run, make_checkpoint(10))
    newest = Path(save_checkpoint(run, make_checkpoint(20)))
    newest.unlink()
    REPLACED[kind](newest)
    assert_equal(load_newest(run), make_checkpoint(10))
    [line] = caplog.messages
    assert line.startswith(f"{newest}: ")


def test_any_garbage_counts_as_damage(tmp_path: Path) -> None:
    run, generator = str(tmp_path), random.Random(0)
    save_checkpoint(run, make_checkpoint(10))
    newest = save_checkpoint(run, make_checkpoint(20))
    content = storage.read_bytes(newest)
    for _ in range(100):
        cut = generator.randrange(len(content))
        for garbage in (generator.randbytes(1 + cut // 9), content[:cut]):
            Path(newest).write_bytes(garbage)
            assert_equal(load_newest(run), make_checkpoint(10))


def test_all_checkpoints_damaged_is_an_explained_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = str(tmp_path)
    for step in (10, 20):
        storage.write_bytes(save_checkpoint(run, make_checkpoint(step)), b"")
    with refused(f"{run}/checkpoints", "all 2", "damaged", remedy=True):
        load_newest(run)
    assert caplog.messages == []  # the error says it all


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["bare pickle", "torch file", "in a checkpoint"])
def test_loading_a_checkpoint_runs_no_code(tmp_path: Path, kind: str) -> None:
    trap, run = tmp_path / "was-run", str(tmp_path / "run")
    good = make_checkpoint(20)
    content = {
        "bare pickle": lambda: pickle.dumps(Malicious(trap)),
        "torch file": lambda: torch_file(Malicious(trap)),
        "in a checkpoint": lambda: torch_file(
            {
                "model": good.model,
                "optimiser": {**good.optimiser, "extra": Malicious(trap)},
                "progress": asdict(good.progress),
            }
        ),
    }[kind]()
    save_checkpoint(run, make_checkpoint(10))
    storage.write_bytes(f"{run}/checkpoints/step-00000020.pt", content)
    assert_equal(load_newest(run), make_checkpoint(10))
    assert not trap.exists()
    # The trap would work, were it not for the loading.
    if kind == "bare pickle":
        pickle.loads(content)
        assert trap.exists()


# In the background


def test_background_work_runs_in_order() -> None:
    background, go_on, done = Background(), threading.Event(), []

    def wait_and_note() -> None:
        go_on.wait()
        done.append(1)

    background.start(wait_and_note)
    assert done == []
    go_on.set()
    background.start(lambda: done.append(2))
    assert done[0] == 1
    background.wait()
    assert done == [1, 2]
    background.start(lambda: done.append(3))
    background.close()
    assert done == [1, 2, 3]


def test_background_error_is_raised_on_wait() -> None:
    def fail() -> None:
        raise UserError("", "the disk is full")

    background = Background()
    for wait in (background.wait, lambda: background.start(lambda: None)):
        background.start(fail)
        with refused("", "the disk is full"):
            wait()
        background.wait()
    background.close()
