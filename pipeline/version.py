"""The version of the program."""

VERSION = "0.1.0"
"""The one place that says it: `pyproject.toml` reads it, and code that is not installed, as in an
uploaded job, has it too."""
