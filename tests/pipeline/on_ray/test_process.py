"""What a process that Ray has started prints, in one that Ray has not."""

import subprocess
import sys

ENDED = """
import os, signal, sys
from pipeline.on_ray import process

def exit_as_ray_does(number, frame):
    sys.exit(1)

signal.signal(signal.SIGTERM, exit_as_ray_does)
process.set_up(20)
process.set_up(20)

class Ended:
    def __del__(self):
        {line}

Ended()
"""


def printed(line: str) -> str:
    """Standard error of a process in which a destructor has this line."""
    code = ENDED.format(line=line)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_end_within_a_destructor_prints_nothing() -> None:
    assert printed("os.kill(os.getpid(), signal.SIGTERM)") == ""


def test_error_within_a_destructor_is_reported() -> None:
    assert "ValueError: of one's own" in printed('raise ValueError("of one\'s own")')
