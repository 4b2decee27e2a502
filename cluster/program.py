"""The program's name, and how it prints an error."""

import sys
from pathlib import Path


def program_name() -> str:
    """`ast-ray` if run as the installed command, else `ray_job.py`."""
    return "ast-ray" if Path(sys.argv[0]).stem == "ast-ray" else "ray_job.py"


def print_error(error: BaseException) -> None:
    """Print an error as the last line of the program."""
    print(f"{program_name()}: error: {error}", file=sys.stderr)
