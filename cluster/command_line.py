"""The options of every step, by argparse: texts in, a namespace out.

Nothing heavy is imported, so that `--help` answers at once: choices and defaults that are
those of a setting stand here once more, and a test holds the two together.
"""

import argparse
from typing import TypeAlias

from cluster.program import VERSION, program_name

Steps: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def make_parser() -> argparse.ArgumentParser:
    """The command line; `command` is the step's name."""
    parser = argparse.ArgumentParser(
        prog=program_name(),
        description="Train Audio Spectrogram Transformers: from audio in a folder or bucket to a "
        "report. Paths are local or s3://bucket/key (endpoint and credentials by the usual AWS "
        "variables).",
    )
    parser.add_argument("--version", action="version", version=f"ast-ray {VERSION}")
    steps = parser.add_subparsers(title="steps", dest="command", required=True, metavar="STEP")
    for add in (
        _add_download,
        _add_manifest,
        _add_prepare,
        _add_verify,
        _add_train,
        _add_evaluate,
        _add_ensemble,
        _add_cross_validate,
        _add_report,
        _add_import,
        _add_export,
    ):
        add(steps)
    _add_job_commands(steps)
    return parser


def _add_download(steps: Steps) -> None:
    step = _add_step(
        steps,
        "download",
        "Fetch a public data set from its own server and check it. Stopped at any moment, the same "
        "command carries on.",
        "speech-commands --out data/speech-commands",
    )
    step.add_argument("name", choices=("esc50", "speech-commands"), help="which data set")
    step.add_argument("--out", required=True, help="local folder to make")
    step.add_argument("--url", help="address of the same archive elsewhere")


def _add_manifest(steps: Steps) -> None:
    step = _add_step(
        steps,
        "manifest",
        "List a data set's clips, with labels, splits and folds, in a Parquet table. For AudioSet, "
        "what is missing and a page of the coverage are written beside it.",
        "s3://sounds/audioset --segments csv/balanced_train_segments.csv "
        "--segments csv/eval_segments.csv --out s3://lab/audioset.parquet",
    )
    step.add_argument("source", help="folder, table or container file of the data set")
    step.add_argument("--out", required=True, help="manifest to write (.parquet)")
    step.add_argument(
        "--layout",
        choices=(
            "auto",
            "esc50",
            "speech-commands",
            "audioset",
            "ast-json",
            "csv",
            "parquet",
            "webdataset",
            "folder",
        ),
        default="auto",
        help="esc50: audio/ and meta/esc50.csv; speech-commands: a folder per word and lists; "
        "audioset: files named after YouTube ids, and --segments; ast-json: JSON files of the AST "
        "authors' code; csv: a table with path and labels; parquet, webdataset: audio within "
        "Parquet files or tars; folder: a folder per class (default: %(default)s)",
    )
    step.add_argument(
        "--folds", type=int, help="number the clips into so many folds, class by class"
    )
    step.add_argument(
        "--segments",
        action="append",
        default=[],
        metavar="[SPLIT=]PATH",
        help="a segment CSV of AudioSet, or a JSON of the AST authors' code; may be repeated",
    )
    step.add_argument(
        "--class-labels",
        metavar="PATH",
        help="CSV with index, mid, display_name (default for AudioSet: class_labels_indices.csv "
        "beside the segments)",
    )
    step.add_argument(
        "--cut",
        choices=("auto", "yes", "no"),
        default="auto",
        help="whether AudioSet's files that are named by an id alone are clips cut already; auto: "
        "by the length of some (default: %(default)s)",
    )
    step.add_argument(
        "--common-ids", metavar="PATH", help="mark these clips as common; a text, one id a line"
    )
    step.add_argument(
        "--column",
        type=_pair,
        action="append",
        default=[],
        metavar="NAME=COLUMN",
        help="what a table calls path, labels, id, split, fold, start_s or end_s, or how to make "
        "one: path=audio/{fname}.wav",
    )
    step.add_argument(
        "--separator", default=";", help="between the labels in a table (default: %(default)s)"
    )
    step.add_argument(
        "--split",
        default="train",
        help="split of clips whose source names none (default: %(default)s)",
    )


def _add_prepare(steps: Steps) -> None:
    step = _add_step(
        steps,
        "prepare",
        "Compute fbanks of all clips and write WebDataset shards, an index and a card. Stopped at "
        "any moment, the same command carries on.",
        "s3://lab/esc50.parquet --out s3://lab/esc50",
    )
    step.add_argument("manifest", help="what `manifest` wrote")
    step.add_argument("--out", required=True, help="folder of the prepared data set")
    step.add_argument("--labels", help="vocabulary, one label a line (default: the manifest's)")
    step.add_argument(
        "--max-reject-share",
        type=_share,
        default=0.1,
        help="fail if a larger share of the clips cannot be used (default: %(default)s)",
    )
    step.add_argument(
        "--retry-rejects", action="store_true", help="try clips again that were rejected before"
    )
    step.add_argument(
        "--store",
        choices=("fbank", "audio"),
        default="fbank",
        help="what of a clip to store: its fbank, or 16-bit FLAC of which training computes it, "
        "with mixup of waveforms (default: %(default)s)",
    )
    step.add_argument(
        "--clips-per-shard",
        type=_positive,
        default=512,
        help="most clips in a shard (default: %(default)s)",
    )
    step.add_argument(
        "--max-duration-s",
        type=float,
        default=600.0,
        help="reject longer clips (default: %(default)s)",
    )
    step.add_argument(
        "--max-file-mb",
        type=_positive,
        default=500,
        help="reject larger files (default: %(default)s)",
    )
    step.add_argument(
        "--reads-ahead",
        type=_positive,
        default=16,
        help="files each task fetches at once (default: %(default)s)",
    )
    step.add_argument(
        "--plan",
        action="store_true",
        help="write nothing; time a sample of the files and say what the data set would take",
    )
    step.add_argument("--json-logs", action="store_true", help="progress and summary as JSON lines")
    _add_session_options(step)


def _add_verify(steps: Steps) -> None:
    step = _add_step(
        steps,
        "verify",
        "Check every byte of a prepared data set against its card and index. What is wrong is "
        "named, and `prepare` run again mends exactly that.",
        "s3://lab/esc50",
    )
    step.add_argument("data", help="folder of the prepared data set")
    step.add_argument("--json-logs", action="store_true", help="progress and faults as JSON lines")
    _add_session_options(step)


def _add_train(steps: Steps) -> None:
    step = _add_step(
        steps,
        "train",
        "Train a recipe on a prepared data set. Stopped at any moment, the same command carries "
        "on from the last checkpoint.",
        "esc50 --data data/esc50 --out runs/esc50 --set data.fold=1",
    )
    _add_training_options(step, "folder of the run")


def _add_evaluate(steps: Steps) -> None:
    step = _add_step(
        steps,
        "evaluate",
        "Score a split with weights of a run: mAP, mAUC, d-prime, accuracy, per class.",
        "runs/esc50 --split train --fold 1",
    )
    step.add_argument("run", help="folder of the run")
    step.add_argument("--split", required=True, help="split to score")
    step.add_argument("--fold", type=int, default=0, help="only this fold of it")
    step.add_argument("--data", help="prepared data set (default: the one trained on)")
    step.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="what the model computes in (default: what it was trained in)",
    )
    _add_weights_option(step)
    _add_worker_options(step)


def _add_ensemble(steps: Steps) -> None:
    step = _add_step(
        steps,
        "ensemble",
        "Train a recipe with several seeds and in variants, as many at a time as fit, and score "
        "the mean of their outputs, those of other runs among them. Stopped at any moment, the "
        "same command carries on.",
        "esc50 --seeds 0 1 2 --data data/esc50 --out runs/esc50x3",
    )
    step.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="seeds to train the recipe with"
    )
    step.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "SECTION.KEY=VALUE"),
        help="train the recipe with other settings, too, in the folder of that name",
    )
    step.add_argument(
        "--runs", nargs="+", default=[], metavar="RUN", help="finished runs that are members, too"
    )
    _add_training_options(
        step, "folder of the runs and of the ensemble's predictions", must_train=False
    )


def _add_cross_validate(steps: Steps) -> None:
    step = _add_step(
        steps,
        "cross-validate",
        "Train a recipe once for each fold of the data set, holding that fold out, as many at a "
        "time as fit, and show each score, mean and deviation. Stopped at any moment, the same "
        "command carries on.",
        "esc50 --data data/esc50 --out runs/esc50",
    )
    step.add_argument(
        "--folds", type=_positive, nargs="+", default=[], help="train only these (default: all)"
    )
    _add_training_options(step, "folder of the runs and of the table")


def _add_report(steps: Steps) -> None:
    step = _add_step(
        steps,
        "report",
        "Draw one HTML page of one or more runs; it needs nothing from elsewhere.",
        "runs/esc50 runs/esc50-wide --out compared.html",
    )
    step.add_argument(
        "runs",
        nargs="+",
        metavar="run",
        help="folders of runs, of ensembles or of cross-validations",
    )
    step.add_argument("--out", help="page to write (default: report.html in the first folder)")


def _add_import(steps: Steps) -> None:
    step = _add_step(
        steps,
        "import",
        "Make a run of a trained AST, to evaluate, average and report as if it were trained here: "
        "a .pth of the AST authors, a folder of transformers, an exported folder or another run.",
        "audioset_10_10_0.4593.pth --data data/audioset --out runs/published",
    )
    step.add_argument("checkpoint", help="file or folder of the trained model")
    step.add_argument("--data", required=True, help="folder of the prepared data set")
    step.add_argument("--out", required=True, help="folder of the run")
    step.add_argument(
        "--recipe",
        help="settings of the run: path of a .toml file, or a name such as esc50 (default: the "
        "checkpoint's, where it tells)",
    )
    _add_set_option(step)


def _add_export(steps: Steps) -> None:
    step = _add_step(
        steps,
        "export",
        "Write weights of a run as a folder that transformers loads, and as ast.safetensors in it, "
        "which `import` and model.weights_file read.",
        "runs/esc50 --out models/esc50",
    )
    step.add_argument("run", help="folder of the run")
    step.add_argument("--out", required=True, help="folder to write")
    _add_weights_option(step)


def _add_job_commands(steps: Steps) -> None:
    step = _add_step(
        steps,
        "submit",
        "Run a step on a Ray cluster through its job server; follows the log and ends with the "
        "job's exit status.",
        "--address http://head:8265 -- prepare s3://lab/esc50.parquet --out s3://lab/esc50",
    )
    step.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return once the job is submitted"
    )
    step.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="pass this variable to the job, too",
    )
    step.add_argument(
        "--forward-credentials",
        action="store_true",
        help="pass the AWS keys to the job; whoever can see the job server can then see them",
    )
    step.add_argument("step", nargs=argparse.REMAINDER, metavar="-- STEP ...", help="what to run")
    listing = _add_step(steps, "jobs", "List the jobs of a cluster.", "")
    show = _add_step(steps, "logs", "Print a job's log.", "JOB --follow")
    show.add_argument("id", help="the job's id")
    show.add_argument("--follow", action="store_true", help="go on until the job ends")
    end = _add_step(steps, "stop", "Stop a job.", "JOB")
    end.add_argument("id", help="the job's id")
    for one in (step, listing, show, end):
        one.add_argument(
            "--address",
            help="the job server (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
        )


def _add_step(steps: Steps, name: str, description: str, example: str) -> argparse.ArgumentParser:
    """Add a step; `example`: what may follow its name on the command line."""
    return steps.add_parser(
        name, help=description, description=description, epilog=f"example: %(prog)s {example}"
    )


def _add_training_options(
    step: argparse.ArgumentParser, out_help: str, *, must_train: bool = True
) -> None:
    recipe = None if must_train else "?"
    step.add_argument(
        "recipe",
        nargs=recipe,
        help="settings of the run: path of a .toml file, or a name such as esc50",
    )
    step.add_argument("--data", required=must_train, help="folder of the prepared data set")
    step.add_argument("--out", required=True, help=out_help)
    _add_set_option(step)
    _add_worker_options(step)


def _add_set_option(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting of the recipe, such as train.epochs=10",
    )


def _add_weights_option(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--weights",
        choices=("last", "averaged", "ema", "best"),
        default="last",
        help="the last checkpoint's, or others that the recipe asked for (default: %(default)s)",
    )


def _add_worker_options(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--workers", type=_positive, default=1, help="processes of a run (default: %(default)s)"
    )
    step.add_argument(
        "--cpus-per-worker",
        type=_positive,
        default=1,
        help="CPUs of each, and its threads (default: %(default)s)",
    )
    step.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="give each a GPU (default: if the cluster has any)",
    )
    _add_session_options(step)


def _add_session_options(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--address",
        help="Ray cluster that this machine is a node of: auto or HOST:PORT (default: RAY_ADDRESS, "
        "else a Ray of its own)",
    )
    step.add_argument("--num-cpus", type=_positive, help="CPUs of a Ray of its own (default: all)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise argparse.ArgumentTypeError(f"must be NAME=COLUMN, got {text!r}")
    return name, value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value
