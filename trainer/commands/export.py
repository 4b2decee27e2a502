"""`export`: writes a run's weights for other programs, with a model card."""

import argparse
import logging
from typing import TYPE_CHECKING, get_args

from pipeline.commands.step import Step, path
from pipeline.errors import UserError
from trainer.commands.options import add_weights_option
from trainer.exchange.settings import UNKNOWN_LICENCE, ExportFormat, OnnxSettings

if TYPE_CHECKING:
    from trainer.data.clips import ClipSet
    from trainer.exchange.export_onnx import OnnxExport

_logger = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    formats = get_args(ExportFormat)
    parser.add_argument("run_folder", metavar="run", type=path, help="folder of the run")
    parser.add_argument("--out", type=path, required=True, help="folder to write")
    parser.add_argument(
        "--format",
        choices=formats,
        default=formats[0],
        help="what to write; onnx: log-mels in, scores out (default: %(default)s)",
    )
    parser.add_argument(
        "--with-fbank", action="store_true", help="onnx: waveforms in, the fbank in the graph"
    )
    parser.add_argument(
        "--int8", action="store_true", help="onnx: write a copy with 8-bit weights, too"
    )
    parser.add_argument(
        "--data", type=path, help="int8: score a prepared data set with both models"
    )
    parser.add_argument("--split", help="split to score (default: the run's held-out clips)")
    parser.add_argument("--fold", type=int, help="score only this fold of the split")
    add_weights_option(parser)
    parser.add_argument(
        "--licence",
        "--license",
        default=UNKNOWN_LICENCE,
        metavar="NAME",
        help="the model's licence for its card, as Hugging Face's hub calls it, such as mit "
        "(default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    _check_options(arguments)
    _refuse_ensemble(arguments.run_folder)
    if arguments.format == "onnx":
        _export_onnx(arguments)
    else:
        from trainer.exchange.export_transformers import export_transformers

        export_transformers(
            arguments.run_folder, arguments.out, arguments.weights, arguments.licence
        )
    print(arguments.out)


def _check_options(arguments: argparse.Namespace) -> None:
    """Refuse options that would do nothing."""
    needs = {
        "--with-fbank": (arguments.with_fbank, "--format onnx", arguments.format == "onnx"),
        "--int8": (arguments.int8, "--format onnx", arguments.format == "onnx"),
        "--data": (arguments.data, "--int8", arguments.int8),
        "--split": (arguments.split, "--data", arguments.data),
        "--fold": (arguments.fold, "--data", arguments.data),
    }
    for option, (is_given, needed, has_needed) in needs.items():
        if is_given and not has_needed:
            raise UserError(option, f"has no effect without {needed}", f"add {needed}, or drop it")


def _refuse_ensemble(folder: str) -> None:
    from trainer.studies.ensemble.result import is_ensemble, read_ensemble

    if is_ensemble(folder):
        runs = list(dict.fromkeys(member.run for member in read_ensemble(folder).members.values()))
        raise UserError(
            folder,
            f"holds an ensemble of {len(runs)} runs, and an export holds one model",
            f"export its members one by one, such as {runs[0]}",
        )


def _export_onnx(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from trainer.exchange.export_onnx import export_onnx
    from trainer.exchange.onnx_graph import check_onnx

    check_onnx()
    result = export_onnx(
        arguments.run_folder,
        arguments.out,
        arguments.weights,
        OnnxSettings(with_fbank=arguments.with_fbank, int8=arguments.int8),
        clips=_clips(arguments) if arguments.data else None,
        licence=arguments.licence,
    )
    from pipeline.terminal.tables import name_value_table, titled

    table = name_value_table()
    for name, size in _rows(result):
        table.add_row(name, size)
    Console().print(titled(arguments.out, table))


def _rows(result: "OnnxExport") -> list[tuple[str, str]]:
    from pipeline.terminal import units

    rows = [(name, units.size(size)) for name, size in result.size_bytes.items()]
    if cost := result.cost:
        rows += [
            ("clips", f"{cost.num_clips:,} of {cost.clips_name}"),
            ("mAP", units.number(cost.float32, 4)),
            ("mAP with int8", units.number(cost.int8, 4)),
        ]
    return rows


def _clips(arguments: argparse.Namespace) -> "ClipSet":
    """The clips to score, chosen as `evaluate` does."""
    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from trainer.data.clips import select_clips
    from trainer.run.checks import check_same_classes
    from trainer.run.run_folder import held_out, read_run
    from trainer.run.trained_on import note_trained_on

    folder = arguments.run_folder
    info, dataset = read_run(folder), open_dataset(arguments.data)
    check_same_classes(folder, info, dataset)
    note_unchecked(dataset)
    split, fold = arguments.split, arguments.fold
    if split is None:
        split, own_fold = held_out(folder, info)
        fold = own_fold if fold is None else fold
    clips = select_clips(dataset, split, fold or 0)
    if note := note_trained_on(folder, info, dataset, clips):
        _logger.info("%s", note)
    return clips


STEP = Step(
    name="export",
    summary="Write a run's weights with a model card: as a folder that transformers loads, whose "
    "ast.safetensors can be read by `import` and model.weights_file, or in ONNX.",
    example="runs/esc50 --out models/esc50",
    add_options=add_options,
    run=run,
)
