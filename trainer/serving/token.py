"""The token that clients must show, if the server has one."""

import hmac
import os
from pathlib import Path

from pipeline.errors import UserError
from trainer.serving.settings import TOKEN_VARIABLE

_LEAST_CHARACTERS = 16


def read_token(path: str | None) -> str | None:
    """The token from a file, else from the environment; None: there is none.

    It is never an argument: other users of the machine see the command line of every process.

    Raises:
        UserError: it is too short to be secret, or not plain text.
    """
    if path is not None:
        where = path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise UserError(path, f"cannot be read ({reason})") from error
    elif TOKEN_VARIABLE in os.environ:
        # Taken out: the processes that decode what strangers send would inherit it.
        where, text = TOKEN_VARIABLE, os.environ.pop(TOKEN_VARIABLE)
    else:
        return None
    token = text.strip()
    if len(token) < _LEAST_CHARACTERS:
        raise UserError(
            where,
            f"a token has at least {_LEAST_CHARACTERS} characters, this one {len(token)}",
            "make one with `openssl rand -hex 32`",
        )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(where, "a token is one line of printable ASCII without spaces")
    return token


def is_right(token: str, authorization: str) -> bool:
    """Whether a header `Authorization: Bearer TOKEN` shows the token.

    The time that this takes does not depend on how much of it is right.
    """
    scheme, _, shown = authorization.partition(" ")
    is_same = hmac.compare_digest(shown.strip().encode(), token.encode())
    return is_same and scheme.lower() == "bearer"
