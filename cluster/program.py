"""The program's name, and how it prints an error."""

import sys
import traceback
from pathlib import Path

from pipeline.errors import UserError


def program_name() -> str:
    """`ast-ray` if run as the installed command, else `ray_job.py`."""
    return "ast-ray" if Path(sys.argv[0]).stem == "ast-ray" else "ray_job.py"


def print_error(error: BaseException) -> None:
    """Print an error as one line; one that is not explained with its traceback and notes."""
    if isinstance(error, UserError):
        print(f"{program_name()}: error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
