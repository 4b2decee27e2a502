"""Text files of users, in UTF-8 or, as Excel and PowerShell write them, in UTF-16."""

import codecs

from pipeline import storage
from pipeline.errors import UserError


def read_text(path: str, remedy: str = "") -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: of the file.
        remedy: what to do if there is no such file.

    Raises:
        UserError: no such file, or not text.
    """
    try:
        data = storage.read_bytes(path)
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(path, "no such file", remedy) from error
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 text ({error.reason})", "save it as UTF-8") from error
    if "\0" in text:
        raise UserError(path, "not UTF-8 text (it has null characters)", "save it as UTF-8")
    return text
