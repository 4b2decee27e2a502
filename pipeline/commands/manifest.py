"""`manifest`: list the clips of a data set."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, get_args, get_type_hints

from pipeline.commands.step import Step, pair, path
from pipeline.errors import UserError
from pipeline.manifest.layouts.names import LAYOUTS
from pipeline.manifest.layouts.options import SourceOptions, split_and_path

if TYPE_CHECKING:
    from pipeline.manifest.file_check import FileCheck
    from pipeline.manifest.manifest import Manifest

_logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    defaults = SourceOptions()
    parser.add_argument(
        "source",
        type=source,
        nargs="+",
        help="folder, table or container file of the data set; several tables make one manifest, "
        "each with its split before it if it has no column for that: dev.csv eval=eval.csv",
    )
    parser.add_argument("--out", type=path, required=True, help="manifest to write (.parquet)")
    parser.add_argument(
        "--layout",
        choices=("auto", *LAYOUTS),
        default="auto",
        help="esc50: audio/ and meta/esc50.csv; speech-commands: a folder per word and lists; "
        "audioset: files named after YouTube ids, and --segments; ast-json: JSON files of the AST "
        "authors' code; csv: a table with path and labels; parquet, webdataset, hdf5: audio within "
        "Parquet files, tars or HDF5 packs; folder: a folder per class (default: %(default)s)",
    )
    parser.add_argument(
        "--folds", type=int, help="assign the clips to this many folds, evenly within each class"
    )
    parser.add_argument(
        "--group",
        default=defaults.group,
        metavar="COLUMN",
        help="with --folds: keep clips with the same value in this column, such as speaker, in one "
        "fold, and each class as even as that allows; a pattern as for --column; for a folder per "
        "class a pattern of the files' names: '{speaker}_*' for anna_1.wav; for AudioSet video "
        "(default: no groups)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="with --folds: another number gives other folds (default: %(default)s)",
    )
    parser.add_argument(
        "--segments",
        action="append",
        default=[],
        metavar="[SPLIT=]PATH",
        help="a segment CSV of AudioSet, or a JSON of the AST authors' code; may be repeated",
    )
    parser.add_argument(
        "--class-labels",
        type=path,
        metavar="PATH",
        help="CSV with index, mid, display_name (default for AudioSet: class_labels_indices.csv "
        "beside the segments)",
    )
    parser.add_argument(
        "--cut",
        choices=get_args(get_type_hints(SourceOptions)["cut"]),
        default=defaults.cut,
        help="whether AudioSet's files named by an id alone are already cut to clips; auto: decide "
        "by the length of some (default: %(default)s)",
    )
    parser.add_argument(
        "--common-ids",
        type=path,
        metavar="PATH",
        help="mark these clips as common; a text file, one id per line",
    )
    parser.add_argument(
        "--column",
        type=pair,
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="the table's name for path, labels, id, split, fold, start_s or end_s, or a pattern "
        "to make it from: path=audio/{fname}.wav; {table} is the table's name without its suffix, "
        "and columns of a table without header are called 1, 2, ...",
    )
    parser.add_argument(
        "--separator",
        default=defaults.separator,
        help="separator of the labels in a table (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="look whether every file exists and starts as audio does, or at none (default: at 20)",
    )
    parser.add_argument(
        "--split",
        default=defaults.split,
        help="split of clips whose source names none (default: %(default)s)",
    )


def source(text: str) -> str:
    """`PATH` or `SPLIT=PATH`, with an absolute path."""
    split, table = split_and_path(text)
    return path(text) if split is None or Path(text).exists() else f"{split}={path(table)}"


def run(arguments: argparse.Namespace) -> None:
    from pipeline.manifest.checks import check
    from pipeline.manifest.file_check import SHOWN, file_warnings
    from pipeline.manifest.files import check_name, write_manifest
    from pipeline.manifest.folds import assign_folds
    from pipeline.manifest.layouts.read import read_sources
    from pipeline.manifest.warnings.find import manifest_warnings

    output = arguments.out
    sources = ", ".join(split_and_path(source)[1] for source in arguments.source)
    check_name(output)
    if arguments.group and arguments.folds is None:
        raise UserError(
            f"--group {arguments.group}", "keeps groups together in folds", "add --folds 5"
        )
    manifest = read_sources(arguments.source, arguments.layout, _options(arguments))
    check(manifest, sources)
    if arguments.folds is not None:
        manifest = assign_folds(manifest, arguments.folds, arguments.seed)
    files = _check_files(arguments.check, manifest, sources)
    write_manifest(output, manifest)
    _write_coverage(output, manifest)
    _print_summary(output, manifest)
    for warning in [*manifest_warnings(manifest), *file_warnings(files)]:
        _logger.warning("%s: %s", sources, warning)
    for fault in files.faults[SHOWN:]:
        _logger.debug("%s: %s", sources, fault)


def _options(arguments: argparse.Namespace) -> SourceOptions:
    return SourceOptions(
        segments=tuple(arguments.segments),
        class_labels=arguments.class_labels,
        cut=arguments.cut,
        common_ids=arguments.common_ids,
        columns=dict(arguments.column),
        separator=arguments.separator,
        group=arguments.group,
        split=arguments.split,
    )


def _check_files(every_file: bool | None, manifest: "Manifest", sources: str) -> "FileCheck":
    """Look at every file, at a sample (None) or at none; refuse a source if all are unusable."""
    from pipeline.manifest.file_check import FileCheck, check_files, refuse_if_all_fail

    if every_file is False:
        return FileCheck(num_files=0, faults=(), is_sample=True)
    files = check_files(manifest, every_file=every_file is True)
    refuse_if_all_fail(files, sources)
    return files


def _write_coverage(output: str, manifest: "Manifest") -> None:
    from pipeline import storage
    from pipeline.pages.coverage_page import write_coverage_page

    stem = output[: -len(".parquet")]
    if manifest.missing is not None:
        path, missing = f"{stem}.missing.parquet", manifest.missing
        storage.write_batches(path, missing.schema, missing.batches())
    if manifest.coverage is not None:
        storage.write_json(f"{stem}.coverage.json", manifest.coverage.to_json())
        write_coverage_page(f"{stem}.coverage.html", manifest.coverage, stem.rpartition("/")[2])


def _print_summary(output: str, manifest: "Manifest") -> None:
    from rich.console import Console

    from pipeline.commands.class_table import class_table
    from pipeline.commands.summaries import manifest_summary
    from pipeline.manifest.class_counts import count_clips

    # Labels and names of files may look like rich's markup or names of emojis.
    console = Console(markup=False, emoji=False)
    console.print(manifest_summary(manifest, output))
    splits, folds = count_clips(manifest, "split"), count_clips(manifest, "fold")
    by_fold = len(splits.parts) == 1 < len(folds.parts)
    console.print(class_table(folds, "fold") if by_fold else class_table(splits, ""))


STEP = Step(
    name="manifest",
    summary="List a data set's clips, with labels, splits and folds, in a Parquet table. For "
    "AudioSet, also write the missing segments and a page of the coverage beside it.",
    example="s3://sounds/audioset --segments csv/balanced_train_segments.csv --segments "
    "csv/eval_segments.csv --out s3://lab/audioset.parquet",
    add_options=add_options,
    run=run,
)
