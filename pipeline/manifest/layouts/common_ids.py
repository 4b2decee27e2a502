"""Mark the clips of a manifest that are in a list of ids on which others report scores.

In: a manifest, and a text file or the first column of a CSV, with plain ids or names of files. Out:
the manifest with the column `common`, and how many of the ids it has.
"""

import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.manifest.coverage import CommonClips
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES
from pipeline.manifest.manifest import Manifest, with_column
from pipeline.manifest.text_files import read_text
from pipeline.storage.stored_table import batches
from pipeline.terminal.units import counted

_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, sorted(AUDIO_SUFFIXES)))})$", re.IGNORECASE)
_Y = re.compile(r"^Y(.{11})$")
"""A `Y` before one of YouTube's ids, which have 11 characters."""
_HEADERS = {"id", "ytid", "youtube_id", "video_id", "segment_id", "name", "file", "filename"}


def mark_common(manifest: Manifest, path: str) -> Manifest:
    """Mark the clips whose id is in the file; on either side with or without a leading `Y` or a
    suffix.

    Raises:
        UserError: there is no such file, or none of its ids is in the manifest.
    """
    listed = _read_ids(path)
    known = pa.array(sorted({_Y.sub(r"\1", name) for name in listed}), pa.string())
    common, present = [], set[str]()
    for batch in batches(manifest.clips, ["id"]):
        ids = pc.replace_substring_regex(batch["id"], f"(?i:{_SUFFIX.pattern})", "")
        ids = pc.replace_substring_regex(ids, _Y.pattern, r"\1")
        common.append(pc.is_in(ids, known))
        present.update(ids.filter(common[-1]).to_pylist())
    num_found = sum(_Y.sub(r"\1", name) in present for name in listed)
    if not num_found:
        raise UserError(path, f"none of its {counted(len(listed), 'id')} is in the manifest")
    notes, coverage = manifest.notes, manifest.coverage
    notes += (f"{num_found:,} of {len(listed):,} common ids are clips of this manifest",)
    if coverage is not None:
        coverage = replace(coverage, common=CommonClips(listed=len(listed), found=num_found))
    clips = with_column(manifest.clips, "common", common)
    return replace(manifest, clips=clips, notes=notes, coverage=coverage)


def _read_ids(path: str) -> set[str]:
    text = read_text(path, "give a file with one id per line")
    cells = [re.split("[,\t]", line, maxsplit=1)[0].strip(' "') for line in text.splitlines()]
    ids = [_SUFFIX.sub("", cell) for cell in cells if cell and not cell.startswith("#")]
    if ids and ids[0].lower() in _HEADERS:
        del ids[0]
    return set(ids)
