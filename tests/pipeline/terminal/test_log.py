"""Log messages of the program: one line each, from the chosen level on."""

import logging
import sys
from collections.abc import Sequence

import pytest

import ray_job
from pipeline.terminal import log
from pipeline.terminal.progress import ProgressBar


def say(level: int) -> None:
    log.set_up(level)
    logger = logging.getLogger("trainer.somewhere")
    logger.debug("%d shards", 3)
    logger.info("resuming")
    logger.warning("odd")
    logger.error("lost")


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (logging.DEBUG, ["debug: 3 shards", "note: resuming", "warning: odd", "error: lost"]),
        (logging.INFO, ["note: resuming", "warning: odd", "error: lost"]),
        (logging.WARNING, ["warning: odd", "error: lost"]),
    ],
)
def test_messages_at_or_above_the_level_are_shown_once(
    level: int, shown: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up(logging.INFO)
    say(level)
    printed = capsys.readouterr()
    assert (printed.out, printed.err.splitlines()) == ("", shown)


def test_messages_are_shown_once_beside_a_root_logger_with_handlers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        log.set_up(logging.INFO)
        logging.getLogger("pipeline.storage").warning("odd")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err == "warning: odd\n"


@pytest.mark.parametrize("json_lines", [False, True])
def test_quiet_steps_show_no_progress(json_lines: bool, capsys: pytest.CaptureFixture[str]) -> None:
    for level, is_shown in ((logging.INFO, True), (logging.WARNING, False)):
        log.set_up(level)
        with ProgressBar("clips", 2, json_lines=json_lines) as bar:
            bar.update(2)
        assert bool(capsys.readouterr().err) is is_shown


def test_every_step_takes_quiet_or_verbose_but_not_both(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for step in ray_job.STEPS:
        with pytest.raises(SystemExit):
            ray_job.main([step.name, "--help"])
        assert "[--quiet | --verbose]" in " ".join(capsys.readouterr().out.split())
