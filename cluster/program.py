"""What the program is called, and its version."""

import sys
from pathlib import Path

VERSION = "0.1.0"
"""The one place of the version: pyproject.toml reads it here, and a folder of the code that is not
installed, as that of an uploaded job, has it too."""


def program_name() -> str:
    """`ast-ray` where the installed command runs, else `ray_job.py`."""
    return "ast-ray" if Path(sys.argv[0]).stem == "ast-ray" else "ray_job.py"


def print_error(error: BaseException) -> None:
    """Show an error as the one line that the program ends with."""
    print(f"{program_name()}: error: {error}", file=sys.stderr)
