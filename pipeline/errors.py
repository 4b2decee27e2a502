"""Exceptions that users see as one line, not as a traceback, and any exception as one line."""

import copy
from collections.abc import Sequence
from typing import Self

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as in shells."""


class UserError(Exception):
    """The user's input is wrong, or the storage or cluster that it names does not work.

    `ray_job.py` prints it as one line, `where: what; remedy`, and exits with `status`, even if it
    was raised in a Ray worker. All subclasses pickle: `args` are those of their constructor.
    """

    status = 1

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        """Say what is wrong.

        Args:
            where: path, option or setting at fault; empty if there is none.
            what: what is wrong with it, with the value.
            remedy: what to do; empty if `what` already implies it.
        """
        super().__init__(where, what, remedy)
        self.where, self.what, self.remedy = where, " ".join(what.splitlines()), remedy

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        return f"{prefix}{self.what}" + (f"; {self.remedy}" if self.remedy else "")

    def prefixed(self, path: str) -> Self:
        """The same error with `path` in front, unless it names `path` or a place inside it."""
        if self.where == path or self.where.startswith((f"{path}/", f"{path},")):
            return self
        what = f"{self.where}: {self.what}" if self.where else self.what
        error = copy.copy(self)
        error.where, error.what = path, what
        return error


class PassingError(UserError):
    """The storage does not answer, or not in full; the same request may succeed later."""


class SettingError(UserError):
    """A setting in a recipe or a `--set` is unknown or has an invalid value."""

    def __init__(self, where: str, what: str, remedy: str = "", setting: str = "") -> None:
        """As `UserError`; `setting` is the name, `section.key` or `section`."""
        super().__init__(where, what, remedy)
        self.args = (where, what, remedy, setting)
        self.setting = setting


class SettingValueError(ValueError):
    """An invalid value for a setting, or for an argument that comes from one."""

    def __init__(self, name: str, what: str) -> None:
        """`name`: of the setting; `what`: the values it may have, and the value it has."""
        super().__init__(name, what)
        self.name, self.what = name, what

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


MAX_COUNT = 1_000_000
"""The most of anything that a setting counts; more is a slip, and would run for ever or fail."""


def check_at_most(settings: object, highest: float, *names: str) -> None:
    """Check the largest value of settings, or of each item of a tuple.

    Raises:
        SettingValueError: one is larger.
    """
    for name in names:
        value = getattr(settings, name)
        if any(number > highest for number in (value if isinstance(value, tuple) else (value,))):
            raise SettingValueError(name, f"must be at most {highest:,}, got {value}")


def check_one_of(settings: object, choices: Sequence[str], *names: str) -> None:
    """Check settings that have a few values.

    Raises:
        SettingValueError: one has another; the message names all that there are.
    """
    for name in names:
        if (value := getattr(settings, name)) not in choices:
            known = ", ".join(map(repr, choices))
            raise SettingValueError(name, f"must be one of {known}, got {value!r}")


def one_line(error: BaseException) -> str:
    """The whole message of an exception in one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without a full stop; else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def last_line(error: BaseException) -> str:
    """The last line of an exception's message; else its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
