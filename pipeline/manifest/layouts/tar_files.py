"""Audio in WebDataset tars: `KEY.flac` (or another suffix of audio) and `KEY.json` make a clip.

The JSON has `labels` and other metadata (`container_rows.FIELDS`). Listing reads the headers and
the JSON members and never the audio, which is later read by its byte range in the tar.
"""

import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.container_rows import (
    ROW_SCHEMA,
    Problems,
    choose_fields,
    label_list,
    likely_group,
    read_containers,
    split_of,
)
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.visible import is_hidden
from pipeline.manifest.manifest import Manifest

SUFFIX = ".tar"
BUFFER_BYTES = 1 << 14
"""Read at once: a clip's headers and JSON are adjacent, and one request fetches them."""

_OTHER = "left out: members that are neither audio nor JSON, such as labels in KEY.cls"
_HIDDEN = "left out: hidden files, such as ._NAME of macOS"
_MAX_NUMBER = 2**31 - 1
_NAME = re.compile(r"(?:\./)?((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
"""WebDataset's rule: the extension starts after the first dot of the base name."""


def read(source: str, options: SourceOptions) -> Manifest:
    """List all tars below a folder, or one tar.

    Raises:
        UserError: there are none, none holds audio, a label is not in `class_labels`, or they are
            shards of a data set that was corrected since.
    """
    _refuse_corrected(source)
    return read_containers(source, (SUFFIX,), list_file, options)


def _refuse_corrected(source: str) -> None:
    """Refuse the shards of a prepared data set that have other labels or clips than its index."""
    shards = source.rpartition("/")[0] if source.endswith(SUFFIX) else source
    for folder in (shards, shards.rpartition("/")[0]):
        path = storage.join(folder, "card.json")
        try:
            card = storage.read_json(path) if folder else None
        except (FileNotFoundError, storage.NoFileError, ValueError):
            continue
        corrections = card.get("corrections") if isinstance(card, dict) else None
        if isinstance(corrections, dict) and any(
            corrections.get(name) for name in ("num_outdated", "num_unused")
        ):
            raise UserError(
                path,
                "the data set was corrected, so the JSON in its shards is older than its index: "
                f"{corrections.get('num_outdated')} clips have other labels, splits or folds now, "
                f"and {corrections.get('num_unused')} are removed",
                "rewrite its shards with `prepare --compact` first",
            )


def list_file(
    path: str, name: str, fields: Mapping[str, tuple[str, ...]]
) -> tuple[pa.Table, Problems]:
    """The clips of a tar; if it is damaged, those before the damage."""
    problems: Problems = Counter()
    byte_ranges: dict[str, tuple[int, int]] = {}
    metadata: dict[str, dict[str, Any]] = {}
    with storage.open_binary(path) as raw:
        file = io.BufferedReader(cast(io.RawIOBase, raw), BUFFER_BYTES)
        for member in _members(file, problems):
            if is_hidden(member.name.removeprefix("./")):
                problems[_HIDDEN] += 1
                continue
            match = _NAME.fullmatch(member.name)
            key, extension = match.groups() if match else (member.name, "")
            if PurePosixPath(f"x.{extension}").suffix.lower() in AUDIO_SUFFIXES:
                if key in byte_ranges:
                    problems["left out: further audio under the same key"] += 1
                else:
                    byte_ranges[key] = (member.offset_data, member.size)
            elif extension.lower() == "json":
                file.seek(member.offset_data)
                metadata[key] = _metadata(file.read(member.size), problems)
            else:
                problems[_OTHER] += 1
    rows = []
    for key, byte_range in byte_ranges.items():
        row = _row(key, byte_range, metadata.get(key, {}), fields, problems)
        if row is not None:
            rows.append({**row, "uri": path, "split": row["split"] or split_of(name)})
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA), problems


def _members(file: io.BufferedIOBase, problems: Problems) -> Iterator[tarfile.TarInfo]:
    """The whole files in a tar, up to its end or the first damage."""
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
            # The library treats anything but a header as the end.
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        problems[f"not a tar, or cut off or damaged ({error}); earlier clips are kept"] += 1


def _metadata(content: bytes, problems: Problems) -> dict[str, Any]:
    try:
        document = storage.parse_json(content)
    except ValueError:
        document = None
    if isinstance(document, dict):
        return document
    problems["invalid JSON members; their clips have no labels"] += 1
    return {}


def _number(value: Any, kind: type[float]) -> float:
    number = kind(value)
    if not abs(number) <= _MAX_NUMBER:  # NaN is not, either
        raise ValueError(f"{value} is no number of a fold or a second")
    return number


def _row(
    key: str,
    byte_range: tuple[int, int],
    metadata: dict[str, Any],
    fields: Mapping[str, tuple[str, ...]],
    problems: Problems,
) -> dict[str, Any] | None:
    chosen = choose_fields(list(metadata), fields)
    plain = [name for name, value in metadata.items() if isinstance(value, str | int)]
    likely = likely_group(plain, fields, chosen)
    if likely is not None:
        chosen["group"] = likely
    given = {ours: metadata[theirs] for ours, theirs in chosen.items()}
    row: dict[str, Any] = {
        "group_name": likely,
        "name": str(given.get("id") or key),
        "offset_bytes": byte_range[0],
        "size_bytes": byte_range[1],
        "file_size_bytes": byte_range[1],
        "labels": label_list(given.get("labels")),
        "split": str(given.get("split") or "") or None,
        "group": None if given.get("group") is None else str(given["group"]),
    }
    try:
        for name, kind in (("start_s", float), ("end_s", float), ("fold", int)):
            row[name] = _number(given[name], kind) if given.get(name) is not None else None
        return row
    except (TypeError, ValueError, OverflowError):
        problems["left out: clips whose fold, start_s or end_s is not a number"] += 1
        return None
