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
_HEADERS = {"id", "ytid", "youtube_id", "video_id", "segment_id", "name", "file", "filename"}


def mark_common(manifest: Manifest, path: str) -> Manifest:
    """Mark the clips whose id is in the file, with or without a leading `Y` or a suffix.

    Raises:
        UserError: there is no such file, or none of its ids is in the manifest.
    """
    listed = _read_ids(path)
    names = pc.replace_substring_regex(manifest.clips["id"], f"(?i:{_SUFFIX.pattern})", "")
    known = pa.array(sorted({*listed, *(name[1:] for name in listed if _has_y(name))}), pa.string())
    common = pc.is_in(names, known)
    present = set(names.filter(common).to_pylist())
    num_found = sum(name in present or (_has_y(name) and name[1:] in present) for name in listed)
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


def _has_y(name: str) -> bool:
    """Whether it can be a `Y` and one of YouTube's ids, which have 11 characters."""
    return len(name) == 12 and name.startswith("Y")
