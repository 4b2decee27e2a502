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
from pipeline.manifest.manifest import SCHEMA, Manifest
from pipeline.manifest.text_files import read_text

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
    ids = pc.replace_substring_regex(manifest.clips["id"], f"(?i:{_SUFFIX.pattern})", "")
    ids = pc.replace_substring_regex(ids, _Y.pattern, r"\1")
    known = {_Y.sub(r"\1", name) for name in listed}
    common = pc.is_in(ids, pa.array(sorted(known), pa.string()))
    present = set(ids.filter(common).to_pylist())
    num_found = sum(_Y.sub(r"\1", name) in present for name in listed)
    if not num_found:
        raise UserError(path, f"none of its {len(listed):,} ids is in the manifest")
    column_index = SCHEMA.get_field_index("common")
    notes, coverage = manifest.notes, manifest.coverage
    notes += (f"{num_found:,} of {len(listed):,} common ids are clips of this manifest",)
    if coverage is not None:
        coverage = replace(coverage, common=CommonClips(listed=len(listed), found=num_found))
    clips = manifest.clips.set_column(column_index, SCHEMA.field(column_index), common)
    return replace(manifest, clips=clips, notes=notes, coverage=coverage)


def _read_ids(path: str) -> set[str]:
    text = read_text(path, "give a file with one id per line")
    cells = [re.split("[,\t]", line, maxsplit=1)[0].strip(' "') for line in text.splitlines()]
    ids = [_SUFFIX.sub("", cell) for cell in cells if cell and not cell.startswith("#")]
    if ids and ids[0].lower() in _HEADERS:
        del ids[0]
    return set(ids)
