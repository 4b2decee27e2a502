"""The JSON files of the AST authors' code: `{"data": [{"wav": PATH, "labels": "MID,MID"}]}`.

The source can be such a file; more are given in `segments` as `SPLIT=PATH`. Paths in them are
relative to the JSON, or to the source if that is a folder. `class_labels` gives the names and the
order of the classes; without it the classes are the labels in the files, sorted.
"""

from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.checks import note_unlabelled
from pipeline.manifest.layouts.csv_table import resolve
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.segments import read_vocabulary, split_and_segments
from pipeline.manifest.manifest import Clip, Manifest, from_clips


def read(source: str, options: SourceOptions) -> Manifest:
    """List the clips of one or several JSON files.

    The id is the file's name without its suffix, or the path if two names are equal.

    Raises:
        UserError: no JSON is given or one is not such a document, a label is not in
            `class_labels`, or no clip has a label.
    """
    files = [split_and_segments(argument) for argument in options.segments]
    if _is_json(source):
        files.insert(0, (options.split, source))
    if not files:
        raise UserError(source, "name a .json file, or several with --segments SPLIT=PATH")
    entries = [(split, path, *entry) for split, path in files for entry in _read_json(path)]
    names = read_vocabulary(options.class_labels) if options.class_labels else None
    stems = [PurePosixPath(wav).stem for _, _, wav, _ in entries]
    ids = stems if len(set(stems)) == len(stems) else [wav for _, _, wav, _ in entries]
    clips = [
        Clip(
            id=clip_id,
            uri=resolve(wav, path.rpartition("/")[0] if _is_json(source) else source),
            labels=_names(labels, names, f"{path}: {wav}"),
            split=split,
        )
        for clip_id, (split, path, wav, labels) in zip(ids, entries, strict=True)
    ]
    in_use = {label for clip in clips for label in clip.labels}
    vocabulary = names.values() if names else sorted(in_use)
    return note_unlabelled(from_clips(clips, list(vocabulary)), source)


def _is_json(path: str) -> bool:
    return path.lower().endswith(".json")


def _read_json(path: str) -> list[tuple[str, list[str]]]:
    """Path and labels of each clip."""
    try:
        document: Any = storage.read_json(path)
        return [(entry["wav"].strip(), entry["labels"].split(",")) for entry in document["data"]]
    except FileNotFoundError as error:
        raise UserError(path, "no such file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            path,
            f'not {{"data": [{{"wav": PATH, "labels": "A,B"}}]}} ({type(error).__name__}: {error})',
        ) from error


def _names(labels: list[str], names: dict[str, str] | None, where: str) -> tuple[str, ...]:
    labels = [label.strip() for label in labels if label.strip()]
    if names is None:
        return tuple(labels)
    unknown = [label for label in labels if label not in names]
    if unknown:
        raise UserError(
            "", f"{where} has the label {unknown[0]!r}, which --class-labels does not name"
        )
    return tuple(names[label] for label in labels)
