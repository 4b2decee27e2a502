"""The learning rate follows the published rule and depends on nothing but its arguments."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingValueError
from tests.support.errors import refused
from trainer.optim.schedule import learning_rate, until
from trainer.optim.settings import ScheduleSettings

AUDIOSET = ScheduleSettings()


@st.composite
def schedules(draw: st.DrawFn) -> ScheduleSettings:
    warmup_steps = draw(st.integers(0, 300))
    return ScheduleSettings(
        lr=draw(st.floats(1e-7, 1.0)),
        warmup_steps=warmup_steps,
        warmup_every_steps=draw(st.integers(1, max(warmup_steps, 1))),
        decay_after_epochs=tuple(sorted(draw(st.sets(st.integers(1, 30), max_size=6)))),
        decay_factor=draw(st.floats(0.1, 1.0)),
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (49, 0.0),
        (50, 0.05),
        (99, 0.05),
        (100, 0.1),
        (999, 0.95),
        (1000, 1.0),
        (1001, 1.0),
    ],
)
def test_audioset_warm_up_equals_the_published(step: int, expected: float) -> None:
    assert learning_rate(AUDIOSET, step=step, epoch=1) == pytest.approx(expected * 1e-5)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.25), (5, 0.125), (9, 0.125)]
)
def test_audioset_decay_equals_the_published(epoch: int, expected: float) -> None:
    assert learning_rate(AUDIOSET, step=5000, epoch=epoch) == pytest.approx(expected * 1e-5)


def original_learning_rates(
    settings: ScheduleSettings, num_epochs: int, num_steps: int
) -> list[float]:
    """Every step's rate as a loop with torch's scheduler and the stepwise warm-up sets it."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], settings.lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, list(settings.decay_after_epochs), gamma=settings.decay_factor
    )
    rates, step = [], 0
    for _ in range(num_epochs):
        for _ in range(num_steps):
            if step <= settings.warmup_steps and step % settings.warmup_every_steps == 0:
                optimizer.param_groups[0]["lr"] = step / settings.warmup_steps * settings.lr
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            step += 1
        scheduler.step()
    return rates


@pytest.mark.parametrize("decay_after_epochs", [(2, 3, 4), (1, 5), ()])
def test_whole_run_equals_torchs_scheduler(decay_after_epochs: tuple[int, ...]) -> None:
    settings = ScheduleSettings(
        lr=3e-4,
        warmup_steps=20,
        warmup_every_steps=5,
        decay_after_epochs=decay_after_epochs,
        decay_factor=0.85,
    )
    ours = [learning_rate(settings, step=step, epoch=1 + step // 30) for step in range(6 * 30)]
    assert ours == pytest.approx(original_learning_rates(settings, 6, 30))


@given(schedules(), st.integers(0, 400), st.integers(1, 40))
def test_rate_is_base_times_warm_up_times_decay(
    settings: ScheduleSettings, step: int, epoch: int
) -> None:
    rate = learning_rate(settings, step=step, epoch=epoch)
    warmed_up = learning_rate(settings, step=settings.warmup_steps, epoch=epoch)
    first_epoch = learning_rate(settings, step=step, epoch=1)
    assert 0 <= rate <= settings.lr
    assert rate * settings.lr == pytest.approx(warmed_up * first_epoch)


@given(schedules(), st.integers(0, 400), st.integers(1, 40))
def test_warm_up_never_falls_and_decay_never_rises(
    settings: ScheduleSettings, step: int, epoch: int
) -> None:
    rate = learning_rate(settings, step=step, epoch=epoch)
    assert learning_rate(settings, step=step + 1, epoch=epoch) >= rate
    assert learning_rate(settings, step=step, epoch=epoch + 1) <= rate


@given(schedules(), st.integers(1, 40))
def test_rate_is_constant_within_an_epoch_without_warm_up(
    settings: ScheduleSettings, epoch: int
) -> None:
    settings = dataclasses.replace(settings, warmup_steps=0)
    rates = {learning_rate(settings, step=step, epoch=epoch) for step in (0, 1, 49, 50, 5000)}
    assert len(rates) == 1
    assert rates.pop() > 0


def test_warm_up_at_every_step_is_a_linear_ramp() -> None:
    settings = ScheduleSettings(lr=1.0, warmup_steps=10, warmup_every_steps=1)
    rates = [learning_rate(settings, step=step, epoch=1) for step in range(12)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1])


def test_warm_up_with_an_uneven_stride_ends_at_the_full_rate() -> None:
    settings = ScheduleSettings(lr=1.0, warmup_steps=10, warmup_every_steps=4)
    rates = [learning_rate(settings, step=step, epoch=1) for step in (3, 4, 9, 10)]
    assert rates == pytest.approx([0, 0.4, 0.8, 1.0])


def test_warm_up_across_a_decay_keeps_the_decay() -> None:
    settings = ScheduleSettings(lr=1.0, decay_after_epochs=(1,))
    assert learning_rate(settings, step=500, epoch=2) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", math.inf),
        ("lr", math.nan),
        ("warmup_steps", -1),
        ("warmup_every_steps", 0),
        ("warmup_every_steps", 1001),
        ("decay_after_epochs", (0, 2)),
        ("decay_after_epochs", (3, 2)),
        ("decay_after_epochs", (2, 2)),
        ("decay_factor", 0.0),
        ("decay_factor", 1.1),
        ("decay_factor", math.nan),
    ],
)
def test_schedule_settings_out_of_range_are_refused(field: str, value: Any) -> None:
    given = list(value) if isinstance(value, tuple) else value
    with refused(field, f"got {given}", type=SettingValueError):
        dataclasses.replace(AUDIOSET, **{field: value})


@pytest.mark.parametrize(("step", "epoch", "name"), [(-1, 1, "step"), (0, 0, "epoch")])
def test_step_or_epoch_out_of_range_is_refused(step: int, epoch: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: .*got {min(step, epoch)}$"):
        learning_rate(AUDIOSET, step=step, epoch=epoch)


@given(schedules(), st.sets(st.integers(1, 30)), st.integers(1, 30), st.integers(0, 400))
def test_later_decays_leave_the_rates_before_them(
    schedule: ScheduleSettings, later: set[int], epoch: int, step: int
) -> None:
    """Schedules that are equal until an epoch have the same rates in it and before."""
    past = [finished for finished in schedule.decay_after_epochs if finished < epoch]
    added = [finished for finished in later if finished >= epoch]
    other = dataclasses.replace(schedule, decay_after_epochs=tuple(sorted({*past, *added})))
    assert until(other, epoch) == until(schedule, epoch)
    for earlier in range(1, epoch + 1):
        rates = {learning_rate(one, step=step, epoch=earlier) for one in (schedule, other)}
        assert len(rates) == 1


def test_earlier_decays_count() -> None:
    assert until(AUDIOSET, 3) != until(AUDIOSET, 4)
