"""Errors checked by their parts, so that a better word in a message breaks no test."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike

import pytest

from pipeline.errors import SettingError, SettingValueError, UserError

Where = str | PathLike[str]


@contextmanager
def refused(
    where: Where,
    *values: object,
    type: type[UserError | SettingValueError] = UserError,
    setting: str | None = None,
    remedy: str | bool = False,
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Expect exactly one error, known by its class, its place and the values that it names.

    Args:
        where: what the error is about, whole or its end; of a `SettingValueError` the field.
        values: what the rest of the message names: numbers, paths, labels, options. A key word
            only where no value tells this error from its neighbours.
        type: the error's class; a subclass is another error.
        setting: the setting of a `SettingError`.
        remedy: an option, command or path that the remedy names; True: there is any.

    Yields:
        What pytest caught, for tests that look at more.
    """
    with pytest.raises(type) as caught:
        yield caught
    error = caught.value
    assert error.__class__ is type
    assert "\n" not in str(error)
    about = error.name if isinstance(error, SettingValueError) else error.where
    assert _is_or_ends_with(about, str(where)), f"about {about!r}: {error}"
    advice = "" if isinstance(error, SettingValueError) else error.remedy
    assert_names(f"{error.what}; {advice}", *values)
    if setting is not None:
        assert isinstance(error, SettingError)
        assert error.setting == setting
    if remedy:
        assert advice, f"no remedy: {error}"
    if isinstance(remedy, str):
        assert_names(advice, remedy)


def assert_names(text: str, *values: object) -> None:
    """Check that each value stands in the text, not only as a part of a longer word or number."""
    missing = [
        value for value in values if not re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text)
    ]
    assert not missing, f"{missing} not in: {text}"


def assert_notes(notes: Iterable[str], *expected: Sequence[object]) -> None:
    """Check that each note, in order, names its values."""
    for note, values in zip(notes, expected, strict=True):
        assert_names(note, *values)


def assert_error_line(stderr: str, where: Where, *values: object) -> None:
    """Check that a command printed one error, about `where`, that names the values."""
    messages = re.findall(r"^(?:.*: )?error: (.*)$", stderr, re.MULTILINE)
    assert len(messages) == 1, stderr
    message = messages[0]
    # `where` may be the end of a path, which is printed whole before the colon.
    head, colon, rest = message.partition(f"{where}: ") if str(where) else ("", ": ", message)
    assert colon, f"not about {str(where)!r}: {message}"
    assert " " not in head, f"not about {str(where)!r}: {message}"
    assert_names(rest, *values)


def _is_or_ends_with(text: str, end: str) -> bool:
    return text == end or (end != "" and text.endswith(end))
