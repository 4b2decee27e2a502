"""Threads beside a block, or ahead of a loop, end when it does."""

import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.threads import ahead, beside


def press_twice_and_go_on(may_end: threading.Event) -> None:
    for _ in range(2):
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(0.2)
    may_end.set()


def test_thread_has_ended_although_ctrl_c_is_pressed_while_it_is_waited_for() -> None:
    may_end = threading.Event()

    def work(is_over: threading.Event) -> None:
        is_over.wait()
        may_end.wait()

    presser = threading.Thread(target=press_twice_and_go_on, args=(may_end,))
    with pytest.raises(KeyboardInterrupt), beside(work, name="work") as thread:
        presser.start()
    assert may_end.is_set()
    thread.join()
    presser.join()


def test_error_of_the_block_ends_the_thread() -> None:
    def work(is_over: threading.Event) -> None:
        is_over.wait()

    with pytest.raises(ValueError, match="mine"), beside(work, name="work") as thread:
        raise ValueError("mine")
    assert not thread.is_alive()


@given(st.integers(0, 12), st.integers(1, 3), st.integers(0, 5))
def test_results_come_in_order_and_no_further_ahead(
    num_items: int, threads: int, num_ahead: int
) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    results = ahead(work, range(num_items), threads=threads, num_ahead=num_ahead)
    for number, result in enumerate(results):
        assert result == number * number
        assert len(begun) <= number + num_ahead + 1
    assert sorted(begun) == list(range(num_items))


def test_work_ahead_that_fails_or_is_not_needed_ends() -> None:
    def work(item: int) -> int:
        return 1 // item

    before = set(threading.enumerate())
    results = ahead(work, [1, 2, 0, 4], threads=2, num_ahead=2)
    assert next(results) == 1
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        next(results)
    unfinished = ahead(work, range(1, 100), threads=2, num_ahead=2)
    assert next(unfinished) == 1
    unfinished.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before
