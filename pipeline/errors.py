"""The one exception type that is shown to users as a line instead of a traceback."""


class UserError(Exception):
    """Something the user gave is wrong: the message says what, where, and what to do.

    `ray_job.py` prints the message and exits with status 1. Raised inside a Ray worker it is
    unwrapped by the driver and ends the job the same way.
    """
