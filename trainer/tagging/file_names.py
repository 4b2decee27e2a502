"""Names of files for recordings, one each: whatever their ids are, safe on any file system.

In: ids, in order. Steps: keep the folders of an id; replace what a system refuses; tell apart what
would be one file. Out: relative paths. The same ids in the same order give the same names.
"""

import re
import unicodedata
from pathlib import PurePosixPath

import xxhash

_REFUSED = re.compile(r'[\x00-\x1f\x7f<>:"\\|?*]')
"""By Windows and its disks, where a folder may be opened that was made elsewhere."""
_ENDS = re.compile(r"^\.+|[. ]+$")
"""`.` and `..`, hidden names, and what Windows drops from the end of a name."""
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)
_MAX_BYTES = 180
"""Of a part of a name: most systems allow 255, which suffixes and unfinished files need, too."""


class FileNames:
    """The names in one folder."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add(self, recording: str) -> str:
        """The path of a recording's file, in the sub-folders that its id names."""
        parts = [_safe(part) for part in recording.split("/") if part] or ["_"]
        mark = "~" + xxhash.xxh3_64_hexdigest(recording.encode(errors="surrogatepass"))
        plain = "/".join(parts)
        names = [plain, plain + mark, _cut("_".join(parts)) + mark]
        chosen = next(name for name in names if self._is_free(name) or name == names[-1])
        key = self._key(chosen)
        self._files.add(key)
        self._folders |= _folders(key)
        return chosen + self._suffix

    def _is_free(self, name: str) -> bool:
        key = self._key(name)
        taken = key in self._files or key in self._folders
        return not taken and _folders(key).isdisjoint(self._files)

    def _key(self, name: str) -> str:
        """Equal for names that are one file where case or the form of accents does not count."""
        return unicodedata.normalize("NFC", name + self._suffix).casefold()


def _folders(path: str) -> set[str]:
    return {str(folder) for folder in PurePosixPath(path).parents}


def _safe(part: str) -> str:
    """A part of an id as a name of a file or folder."""
    name = _REFUSED.sub("_", part.encode(errors="replace").decode())
    name = _ENDS.sub(lambda found: "_" * len(found[0]), name)
    return _cut(f"_{name}" if _DEVICES.fullmatch(name) else name)


def _cut(name: str) -> str:
    return name.encode()[:_MAX_BYTES].decode(errors="ignore")
