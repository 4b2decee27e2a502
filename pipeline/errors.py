"""The exceptions that are shown to users as a line instead of a traceback, and lines of others."""

from typing import Self


class UserError(Exception):
    """Something the user gave is wrong, or the storage or cluster that they named.

    `ray_job.py` prints it as one line, `where: what; remedy`, and exits with status 1, also where
    it was raised in a Ray worker. Subclasses take the same three arguments, so that all pickle.
    """

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        """Say what is wrong.

        Args:
            where: path, option or setting that it is about; empty where there is none.
            what: what is wrong with it, with the value.
            remedy: what to do; empty where `what` says it already.
        """
        super().__init__(where, what, remedy)
        self.where, self.what, self.remedy = where, " ".join(what.splitlines()), remedy

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"; {self.remedy}" if self.remedy else "")

    def prefixed(self, path: str) -> Self:
        """The same error about `path`, unless it is about that or something within it already."""
        if self.where == path or self.where.startswith((f"{path}/", f"{path},")):
            return self
        what = f"{self.where}: {self.what}" if self.where else self.what
        return type(self)(path, what, self.remedy)


class PassingError(UserError):
    """A storage that does not answer, or not in full: what was tried may work some time later."""


class SettingError(UserError):
    """A setting that a recipe or a `--set` gives is unknown, or has a value that it cannot have."""

    def __init__(self, where: str, what: str, remedy: str = "", setting: str = "") -> None:
        """As `UserError`; `setting` is its name, `section.key` or `section`."""
        super().__init__(where, what, remedy)
        self.args = (where, what, remedy, setting)
        self.setting = setting


class SettingValueError(ValueError):
    """A value that a field of a settings class cannot have."""

    def __init__(self, name: str, what: str) -> None:
        """`name` is the field's; `what`: what it must be, and what it is."""
        super().__init__(name, what)
        self.name, self.what = name, what

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def one_line(error: BaseException) -> str:
    """All that an exception says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, without a full stop; its type as in `one_line`."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
