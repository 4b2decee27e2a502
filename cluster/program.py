"""What the program is called, and how it shows an error."""

import sys
from pathlib import Path


def program_name() -> str:
    """`ast-ray` where the installed command runs, else `ray_job.py`."""
    return "ast-ray" if Path(sys.argv[0]).stem == "ast-ray" else "ray_job.py"


def print_error(error: BaseException) -> None:
    """Show an error as the one line that the program ends with."""
    print(f"{program_name()}: error: {error}", file=sys.stderr)
