"""The files of a source without hidden ones and those that systems leave in folders.

Beside each file, macOS writes `._NAME` on foreign disks, and `__MACOSX/` into archives; Windows
writes `Thumbs.db`, Jupyter `.ipynb_checkpoints/`. Some have the suffixes of audio.
"""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage

_HIDDEN = (
    r"(?:^|/)(?:\.[^/]+|(?i:__MACOSX|\$RECYCLE\.BIN|System Volume Information|lost\+found|@eaDir"
    r"|Thumbs\.db|ehthumbs\.db|ehthumbs_vista\.db|desktop\.ini))(?:/|$)"
)
_PATTERN = re.compile(_HIDDEN)


def is_hidden(name: str) -> bool:
    """Whether a path, relative to its source, is hidden or in a hidden folder."""
    return _PATTERN.search(name) is not None


class VisibleFiles:
    """Lists a location, and counts what it leaves out."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._num_hidden = 0
        self._example = ""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Batches of `path` and `size_bytes`, as `storage.iter_files` yields them."""
        # Folders above the location may be hidden.
        start = len(storage.join(self._location, ""))
        for batch in storage.iter_files(self._location):
            names = pc.utf8_slice_codeunits(batch["path"], start)
            hidden = pc.match_substring_regex(names, _HIDDEN)
            left_out = names.filter(hidden)
            if len(left_out):
                self._num_hidden += len(left_out)
                self._example = min(filter(None, (self._example, pc.min(left_out).as_py())))
            yield batch.filter(pc.invert(hidden))

    def paths(self) -> list[str]:
        """All paths, sorted."""
        return sorted(path for batch in self.batches() for path in batch["path"].to_pylist())

    def notes(self) -> list[str]:
        """How many files were left out so far."""
        if not self._num_hidden:
            return []
        return [f"left out {self._num_hidden:,} hidden files, such as {self._example}"]
