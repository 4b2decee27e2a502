"""The folder for temporary files: what to do if it is full."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError, one_line


@contextmanager
def explained_temporary(what: str) -> Iterator[None]:
    """Names the folder, and how to choose another, if it cannot hold something.

    Raises:
        UserError: writing there failed.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            tempfile.gettempdir(),
            f"cannot hold {what} ({error.strerror or one_line(error)})",
            "make room there, or set TMPDIR to a folder with room",
        ) from error
