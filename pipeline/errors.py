"""The exceptions that are shown to users as a line instead of a traceback."""


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do.

    `ray_job.py` prints the message and exits with status 1. Raised inside a Ray worker it is
    unwrapped by the driver and ends the job the same way.
    """


class PassingError(UserError):
    """A storage that does not answer, or not in full: what was tried may work some time later."""


def naming(path: str, error: UserError) -> UserError:
    """The error with a path at its begin; as it is if it begins with that, or with one below it."""
    is_named = str(error).startswith((f"{path}:", f"{path}/"))
    return error if is_named else UserError(f"{path}: {error}")
