"""The progress bar's words and total."""

import math
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray

from cluster.signals import one_interrupt
from trainer.checkpoints.progress import CurvePoint, EpochResult
from trainer.on_ray import progress as ray_progress
from trainer.on_ray.board import Board
from trainer.run.run_progress import RunProgress

POINT = CurvePoint(
    step=7,
    epoch=2,
    loss=0.0125,
    grad_norm=0.321,
    clips_per_s=812.4,
    data_wait_share=0.034,
    peak_memory_bytes=12_300_000_000,
    mfu=0.413,
)
RUN = RunProgress(
    run="/a/run",
    step=7,
    num_steps=9,
    epoch=2,
    lr=1e-5,
    num_bad_steps=3,
    last_point=POINT,
    last_epoch=None,
)


def test_unstarted_runs_count_as_long_as_the_first() -> None:
    assert ray_progress._num_steps([replace(RUN, num_steps=7)], 3) == 21
    runs = [replace(RUN, num_steps=7), RUN]
    assert ray_progress._num_steps(runs, 3) == 23


def test_single_run_shows_its_newest_figures_and_scores() -> None:
    assert ", ".join(ray_progress._notes([RUN], 1)) == (
        "loss 0.013, epoch 2, lr 1.0e-05, 3 steps skipped, 812 clips/s, 3% waiting for data, "
        "12.3 GB, 41% of peak FLOPs, gradient 0.32"
    )
    epoch = EpochResult(epoch=1, step=5, mAP=0.6, accuracy=0.5)
    notes = ray_progress._notes([replace(RUN, last_epoch=epoch)], 1)
    assert notes[:4] == ["mAP 0.600", "loss 0.013", "epoch 2", "accuracy 0.500"]


def test_unknown_figures_are_left_out() -> None:
    new = replace(RUN, num_bad_steps=0, last_point=None)
    assert ray_progress._notes([new], 1) == ["epoch 2", "lr 1.0e-05"]


def test_progress_names_every_run_even_before_all_report() -> None:
    first = replace(RUN, run="/a/seed-0", epoch=3, step=18, num_steps=18)
    second = replace(RUN, run="/a/seed-1", epoch=1, step=2, num_steps=18)
    assert ray_progress._notes([first], 2) == ["seed-0 trained"]
    assert ray_progress._notes([first, second], 2) == ["seed-0 trained", "seed-1 epoch 1"]


def receive_sigterm_twice(is_stopping: threading.Event) -> None:
    with one_interrupt(), ray_progress._stopping_once(is_stopping, threading.main_thread()):
        signal.raise_signal(signal.SIGTERM)
        assert is_stopping.is_set()
        signal.raise_signal(signal.SIGTERM)


def test_first_sigterm_is_a_wish_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        receive_sigterm_twice(threading.Event())
    assert signal.getsignal(signal.SIGTERM) is before


def receive_sigterm() -> None:
    lost = threading.Thread()
    with one_interrupt(), ray_progress._stopping_once(threading.Event(), lost):
        signal.raise_signal(signal.SIGTERM)


def test_first_sigterm_interrupts_if_nothing_follows_the_runs_any_more() -> None:
    with pytest.raises(KeyboardInterrupt):
        receive_sigterm()


def test_board_is_told_to_stop_once_and_the_step_interrupted_when_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board, is_stopping = SimpleNamespace(stop=SimpleNamespace(remote=Mock())), threading.Event()
    interrupted = Mock()
    monkeypatch.setattr(signal, "pthread_kill", interrupted)
    assert ray_progress._stop(board, math.inf, is_stopping) == math.inf
    is_stopping.set()
    ends_at = ray_progress._stop(board, math.inf, is_stopping)
    assert ray_progress._stop(board, ends_at, is_stopping) == ends_at
    assert board.stop.remote.call_count == 1
    interrupted.assert_not_called()
    ray_progress._stop(board, -1.0, is_stopping)
    interrupted.assert_called_once()


def test_board_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def get(answer: object, timeout: float) -> list[RunProgress]:
        limits.append(timeout)
        if len(limits) == 2:
            raise ray.exceptions.GetTimeoutError
        return [RUN]

    monkeypatch.setattr(ray, "get", get)
    board = SimpleNamespace(get=SimpleNamespace(remote=Mock()))
    assert ray_progress._newest(board, []) == [RUN]
    assert ray_progress._newest(board, [RUN, RUN]) == [RUN, RUN]
    assert all(limits)


def test_worker_learns_of_the_stop_from_the_answer_to_its_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board()
    actor = SimpleNamespace(put=SimpleNamespace(remote=board.put))
    monkeypatch.setattr(ray, "wait", lambda answers, timeout: (answers, []))
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray_progress, "REPORT_EVERY_S", 0.0)
    reporter = ray_progress.Reporter(actor)
    for step in (1, 2):
        reporter.report(replace(RUN, step=step))
        assert not reporter.asked()
    board.stop()
    for step in (3, 4):
        reporter.report(replace(RUN, step=step))
    assert reporter.asked()
    assert [run.step for run in board.get()] == [4]
