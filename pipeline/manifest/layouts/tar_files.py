"""Audio in WebDataset tars: `KEY.flac` (or another suffix of audio) and `KEY.json` make a clip.

The JSON has `labels` and whatever else is known (`container_rows.FIELDS`). Listing reads the
headers and the JSON members and never the audio, which is later read by its byte range in the tar.
"""

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa

from pipeline import storage
from pipeline.manifest.layouts.container_rows import (
    ROW_SCHEMA,
    Problems,
    choose_fields,
    label_list,
    read_containers,
    split_of,
)
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Manifest

SUFFIX = ".tar"
BUFFER_BYTES = 1 << 14
"""Read at once: a clip's headers and JSON stand side by side and come by one request."""

_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""WebDataset's rule: what follows the first dot of the base name is the extension."""


def read(source: str, options: SourceOptions) -> Manifest:
    """List all tars below a folder, or one.

    Raises:
        UserError: there is none, none holds audio, or a label is not in `class_labels`.
    """
    return read_containers(source, SUFFIX, list_file, options)


def list_file(
    path: str, name: str, fields: Mapping[str, tuple[str, ...]]
) -> tuple[pa.Table, Problems]:
    """The clips of one tar; of a damaged one those before the damage."""
    problems: Problems = Counter()
    places: dict[str, tuple[int, int]] = {}
    facts: dict[str, dict[str, Any]] = {}
    with storage.open_binary(path) as raw:
        file = io.BufferedReader(cast(io.RawIOBase, raw), BUFFER_BYTES)
        for member in _members(file, problems):
            match = _NAME.fullmatch(member.name)
            key, extension = match.groups() if match else (member.name, "")
            if PurePosixPath(f"x.{extension}").suffix.lower() in AUDIO_SUFFIXES:
                if key in places:
                    problems["left out: further audio under the same key"] += 1
                else:
                    places[key] = (member.offset_data, member.size)
            elif extension == "json":
                file.seek(member.offset_data)
                facts[key] = _facts(file.read(member.size), problems)
    rows = []
    for key, place in places.items():
        row = _row(key, place, facts.get(key, {}), fields, problems)
        if row is not None:
            rows.append({**row, "uri": path, "split": row["split"] or split_of(name)})
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA), problems


def _members(file: io.BufferedIOBase, problems: Problems) -> Iterator[tarfile.TarInfo]:
    """The files that are whole in a tar, up to its end or the first damage."""
    file_size_bytes = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", errors="replace") as tar:
            for member in tar:
                if member.offset_data + member.size > file_size_bytes:
                    raise tarfile.ReadError("the last member is cut off")
                if member.isreg() and not member.issparse():
                    yield member
                elif not member.isdir():
                    problems["left out: links, sparse files and devices"] += 1
            # The library takes whatever is no header for the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("there is no end mark")
    except tarfile.TarError as error:
        problems[f"no tar, or cut off or damaged ({error}); what comes before is kept"] += 1


def _facts(content: bytes, problems: Problems) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    problems["JSON members that are none; their clips have no labels"] += 1
    return {}


def _row(
    key: str,
    place: tuple[int, int],
    facts: dict[str, Any],
    fields: Mapping[str, tuple[str, ...]],
    problems: Problems,
) -> dict[str, Any] | None:
    chosen = choose_fields(list(facts), fields)
    given = {ours: facts[theirs] for ours, theirs in chosen.items()}
    row: dict[str, Any] = {
        "name": str(given.get("id") or key),
        "offset_bytes": place[0],
        "size_bytes": place[1],
        "file_size_bytes": place[1],
        "labels": label_list(given.get("labels")),
        "split": str(given.get("split") or "") or None,
    }
    try:
        for name, kind in (("start_s", float), ("end_s", float), ("fold", int)):
            row[name] = kind(given[name]) if given.get(name) is not None else None
        return row
    except (TypeError, ValueError):
        problems["left out: clips whose fold, start_s or end_s is not a number"] += 1
        return None
