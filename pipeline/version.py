"""The version of the program."""

VERSION = "0.1.0"
"""Defined only here: `pyproject.toml` reads it, and code that is not installed, such as an uploaded
job, has it too."""
