#!/usr/bin/env python3
"""Every step of ast-ray, here or on a Ray cluster: `ray_job.py STEP --help` explains each.

This file only reads the command line and calls the step. Heavy libraries are imported within the
commands that need them, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.errors import UserError
from pipeline.storage import absolute

if TYPE_CHECKING:
    from trainer.ray_workers import Workers
    from trainer.recipe import Recipe

PROJECT = Path(__file__).resolve().parent
_PLAN_SAMPLE = 64
"""Clips that `prepare --plan` times."""
Arguments = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run one step; the exit status is 0, 1 for an explained error, or 130 for Ctrl-C."""
    arguments = make_parser().parse_args(argv)
    try:
        status: int | None = arguments.command(arguments)
        return status or 0
    except KeyboardInterrupt:
        told = "interrupted; the same command carries on, or says what is in its way"
        print(told, file=sys.stderr)
        return 130
    except Exception as error:
        from cluster.session import unwrap

        cause = unwrap(error)
        if not isinstance(cause, UserError):
            raise
        _print_error(cause)
        return 1


def download(arguments: Arguments) -> None:
    from pipeline.download import DATASETS
    from pipeline.download import download as fetch

    output = absolute(arguments.out)
    is_new = fetch(DATASETS[arguments.name], output, arguments.url)
    print(output if is_new else f"{output}: there already, nothing to do")


def manifest(arguments: Arguments) -> None:
    from pipeline import storage
    from pipeline.manifest import assign_folds, write_manifest
    from pipeline.pages.coverage_page import write_coverage_page
    from pipeline.sources import read_source
    from pipeline.sources.options import SourceOptions
    from pipeline.summary import manifest_summary

    output = absolute(arguments.out)
    options = SourceOptions(
        segments=tuple(arguments.segments),
        class_labels=_given(arguments.class_labels),
        cut=arguments.cut,
        common_ids=_given(arguments.common_ids),
        columns=dict(arguments.column),
        separator=arguments.separator,
        split=arguments.split,
    )
    found = read_source(absolute(arguments.source), arguments.layout, options)
    if arguments.folds is not None:
        found = assign_folds(found, arguments.folds)
    write_manifest(output, found)
    stem = output.removesuffix(".parquet")
    if found.missing is not None:
        storage.write_table(f"{stem}.missing.parquet", found.missing)
    if found.coverage is not None:
        storage.write_json(f"{stem}.coverage.json", found.coverage)
        write_coverage_page(f"{stem}.coverage.html", found.coverage, stem.rpartition("/")[2])
    Console().print(manifest_summary(found, output))


def prepare(arguments: Arguments) -> None:
    import json
    from dataclasses import asdict, replace

    from pipeline import prepare as on_ray
    from pipeline.decode import DecodeSettings
    from pipeline.estimate import estimate
    from pipeline.manifest import check, read_labels, read_manifest
    from pipeline.pages.dataset_page import write_dataset_page
    from pipeline.plan import PrepareSettings
    from pipeline.summary import estimate_summary, prepare_summary

    path, output = absolute(arguments.manifest), absolute(arguments.out)
    found = read_manifest(path)
    if labels := _given(arguments.labels):
        found = replace(found, labels=read_labels(labels))
        check(found, path)
    try:
        settings = PrepareSettings(
            decode=DecodeSettings(
                max_duration_s=arguments.max_duration_s,
                max_file_bytes=arguments.max_file_mb * 1_000_000,
            ),
            clips_per_shard=arguments.clips_per_shard,
            store=arguments.store,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    if arguments.plan:
        found_plan = estimate(found, settings, _PLAN_SAMPLE)
        if arguments.json_logs:
            print(json.dumps({"event": "plan", **asdict(found_plan)}))
        else:
            Console().print(estimate_summary(found_plan, output))
        return
    summary = on_ray.prepare(
        found,
        output,
        settings,
        session=_session(arguments),
        max_reject_share=arguments.max_reject_share,
        retry_rejects=arguments.retry_rejects,
        reads_ahead=arguments.reads_ahead,
        json_logs=arguments.json_logs,
    )
    page = write_dataset_page(output) if summary else None
    if arguments.json_logs:
        facts = asdict(summary) if summary else {}
        print(json.dumps({"event": "summary", "page": page, **facts}))
    elif summary is None:
        print(f"{output}: complete already, nothing to do")
    else:
        Console().print(prepare_summary(summary))
        print(page)


def verify(arguments: Arguments) -> int:
    import json
    from dataclasses import asdict

    from pipeline import verify as checks
    from pipeline.summary import faults_summary

    path = absolute(arguments.data)
    faults = checks.verify(path, session=_session(arguments), json_logs=arguments.json_logs)
    if arguments.json_logs:
        for fault in faults:
            print(json.dumps({"event": "fault", **asdict(fault)}))
        print(json.dumps({"event": "summary", "num_faults": len(faults)}))
    else:
        Console().print(faults_summary(faults, path))
    return 1 if faults else 0


def train(arguments: Arguments) -> None:
    from trainer.checkpoint import checkpoint_paths
    from trainer.predictions import predictions_path
    from trainer.recipe import load_recipe
    from trainer.run_checks import check_training
    from trainer.run_folder import read_run
    from trainer.summary import check_learned, metrics_summary

    data, run = absolute(arguments.data), absolute(arguments.out)
    recipe = load_recipe(absolute(arguments.recipe), arguments.set)
    is_finished, remarks = check_training(recipe, data, run)
    for remark in remarks:
        print(f"note: {remark}", file=sys.stderr)
    if is_finished:
        print(f"{run}: finished already, nothing to do")
    else:
        if checkpoints := checkpoint_paths(run):
            newest = checkpoints[-1].rpartition("/")[2]
            print(f"{run}: carrying on; the newest checkpoint is {newest}", file=sys.stderr)
        from trainer import ray_train

        with _session(arguments):
            ray_train.run_training(recipe, data, run, _workers(arguments))
    name = read_run(run)["data"]["eval_name"]
    Console().print(metrics_summary(run, name))
    print(predictions_path(run, name))
    check_learned(run)


def evaluate(arguments: Arguments) -> None:
    from trainer import ray_train
    from trainer.predictions import predictions_path
    from trainer.run_checks import check_evaluation
    from trainer.run_folder import read_run
    from trainer.summary import metrics_summary

    run = absolute(arguments.run)
    data = _given(arguments.data) or read_run(run)["data"]["path"]
    what = run, data, arguments.split, arguments.fold
    name = check_evaluation(*what, arguments.weights)
    with _session(arguments):
        ray_train.run_evaluation(*what, _workers(arguments), arguments.weights, arguments.precision)
    Console().print(metrics_summary(run, name))
    print(predictions_path(run, name))


def ensemble(arguments: Arguments) -> None:
    from trainer.ensemble import make_table, plan_ensemble, score_ensemble

    output = absolute(arguments.out)
    plan = plan_ensemble(
        _given(arguments.recipe),
        arguments.set,
        output,
        data_path=_given(arguments.data),
        seeds=arguments.seeds,
        variants=arguments.variant,
        runs=[absolute(run) for run in arguments.runs],
    )
    if plan.recipes:
        _train_all(plan.recipes, arguments)
    result = score_ensemble(plan.runs, plan.name, output)
    Console().print(make_table(result))
    if result.left_out:
        print(
            f"members before that are left out now: {' '.join(result.left_out)}; name them by "
            f"--seeds, --variant or --runs to have them in",
            file=sys.stderr,
        )


def cross_validate(arguments: Arguments) -> None:
    from trainer.cross_validation import make_table, plan_folds, score_folds

    recipe, data = absolute(arguments.recipe), absolute(arguments.data)
    output = absolute(arguments.out)
    plan = plan_folds(recipe, arguments.set, data, output, arguments.folds)
    _train_all(plan.recipes, arguments)
    Console().print(make_table(score_folds(plan.scored, output)))
    if plan.left_out:
        names = " ".join(run.rpartition("/")[2] for run in plan.left_out)
        print(f"not in the table, as not finished: {names}", file=sys.stderr)


def report(arguments: Arguments) -> None:
    from trainer.report import write_report

    runs = [absolute(run) for run in arguments.runs]
    print(write_report(runs, output=_given(arguments.out)))


def import_checkpoint(arguments: Arguments) -> None:
    from trainer.export import import_run

    run = absolute(arguments.out)
    found = import_run(
        absolute(arguments.checkpoint),
        absolute(arguments.data),
        run,
        _given(arguments.recipe) or "",
        arguments.set,
    )
    how = "found by name" if found.by_name else "taken to be in the order of the data set's"
    print(
        f"{run}: {found.num_classes} classes, {how}; {found.num_classes_left_out} more of the "
        f"checkpoint's are left out"
    )


def export(arguments: Arguments) -> None:
    from trainer.export import export_run

    output = absolute(arguments.out)
    export_run(absolute(arguments.run), output, arguments.weights)
    print(output)


def submit(arguments: Arguments) -> int:
    from cluster import jobs

    command = arguments.step[1:] if arguments.step[:1] == ["--"] else arguments.step
    if command:
        # A mistake in the step's own options is better found here than on the cluster.
        make_parser().parse_args(command)
    return jobs.submit(
        command,
        address=arguments.address,
        wait=arguments.wait,
        environment=jobs.forwarded_environment(
            arguments.env, credentials=arguments.forward_credentials, environ=os.environ
        ),
        working_dir=str(PROJECT),
    )


def list_jobs(arguments: Arguments) -> None:
    from cluster import jobs

    jobs.list_jobs(address=arguments.address)


def logs(arguments: Arguments) -> int:
    from cluster import jobs

    return jobs.print_logs(arguments.id, address=arguments.address, follow=arguments.follow)


def stop(arguments: Arguments) -> None:
    from cluster import jobs

    jobs.stop(arguments.id, address=arguments.address)


def _train_all(recipes: "dict[str, Recipe]", arguments: Arguments) -> None:
    """Train what is not finished yet; each run that fails is named, the last one by the error."""
    from cluster.session import unwrap_each
    from trainer.ray_tune import train_unfinished

    data, output = absolute(arguments.data), absolute(arguments.out)
    failures = train_unfinished(
        recipes, data, output, _workers(arguments), session=_session(arguments)
    )
    errors = unwrap_each(failures)
    for error in errors[:-1]:
        _print_error(error)
    if errors:
        raise errors[-1]


def _print_error(error: BaseException) -> None:
    print(f"ray_job.py: error: {error}", file=sys.stderr)


def _given(path: str | None) -> str | None:
    """The path of an option that need not be there."""
    return None if path is None else absolute(path)


def _session(arguments: Arguments) -> AbstractContextManager[None]:
    from cluster.session import connect

    return connect(address=arguments.address, num_cpus=arguments.num_cpus)


def _workers(arguments: Arguments) -> "Workers":
    from trainer.ray_workers import Workers

    return Workers(num=arguments.workers, cpus=arguments.cpus_per_worker, use_gpu=arguments.gpu)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="ray_job.py",
        description="Train Audio Spectrogram Transformers: from audio in a folder or bucket to a "
        "report. Paths are local or s3://bucket/key (endpoint and credentials by the usual AWS "
        "variables).",
    )
    steps = parser.add_subparsers(title="steps", required=True, metavar="STEP")
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


def _add_download(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "download",
        download,
        "Fetch a public data set from its own server and check it. Stopped at any moment, the same "
        "command carries on.",
        "ray_job.py download speech-commands --out data/speech-commands",
    )
    step.add_argument("name", choices=("esc50", "speech-commands"), help="which data set")
    step.add_argument("--out", required=True, help="local folder to make")
    step.add_argument("--url", help="address of the same archive elsewhere")


def _add_manifest(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "manifest",
        manifest,
        "List a data set's clips, with labels, splits and folds, in a Parquet table. For AudioSet, "
        "what is missing and a page of the coverage are written beside it.",
        "ray_job.py manifest s3://sounds/audioset --segments csv/balanced_train_segments.csv "
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


def _add_prepare(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "prepare",
        prepare,
        "Compute fbanks of all clips and write WebDataset shards, an index and a card. Stopped at "
        "any moment, the same command carries on.",
        "ray_job.py prepare s3://lab/esc50.parquet --out s3://lab/esc50",
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


def _add_verify(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "verify",
        verify,
        "Check every byte of a prepared data set against its card and index. What is wrong is "
        "named, and `prepare` run again mends exactly that.",
        "ray_job.py verify s3://lab/esc50",
    )
    step.add_argument("data", help="folder of the prepared data set")
    step.add_argument("--json-logs", action="store_true", help="progress and faults as JSON lines")
    _add_session_options(step)


def _add_train(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "train",
        train,
        "Train a recipe on a prepared data set. Stopped at any moment, the same command carries "
        "on from the last checkpoint.",
        "ray_job.py train recipes/esc50.toml --data data/esc50 --out runs/esc50 --set data.fold=1",
    )
    _add_training_options(step, "folder of the run")


def _add_evaluate(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "evaluate",
        evaluate,
        "Score a split with weights of a run: mAP, mAUC, d-prime, accuracy, per class.",
        "ray_job.py evaluate runs/esc50 --split train --fold 1",
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


def _add_ensemble(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "ensemble",
        ensemble,
        "Train a recipe with several seeds and in variants, as many at a time as fit, and score "
        "the mean of their outputs, those of other runs among them. Stopped at any moment, the "
        "same command carries on.",
        "ray_job.py ensemble recipes/esc50.toml --seeds 0 1 2 --data data/esc50 --out runs/esc50x3",
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


def _add_cross_validate(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "cross-validate",
        cross_validate,
        "Train a recipe once for each fold of the data set, holding that fold out, as many at a "
        "time as fit, and show each score, mean and deviation. Stopped at any moment, the same "
        "command carries on.",
        "ray_job.py cross-validate recipes/esc50.toml --data data/esc50 --out runs/esc50",
    )
    step.add_argument(
        "--folds", type=_positive, nargs="+", default=[], help="train only these (default: all)"
    )
    _add_training_options(step, "folder of the runs and of the table")


def _add_report(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "report",
        report,
        "Draw one HTML page of one or more runs; it needs nothing from elsewhere.",
        "ray_job.py report runs/esc50 runs/esc50-wide --out compared.html",
    )
    step.add_argument(
        "runs",
        nargs="+",
        metavar="run",
        help="folders of runs, of ensembles or of cross-validations",
    )
    step.add_argument("--out", help="page to write (default: report.html in the first folder)")


def _add_import(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "import",
        import_checkpoint,
        "Make a run of a trained AST, to evaluate, average and report as if it were trained here: "
        "a .pth of the AST authors, a folder of transformers, an exported folder or another run.",
        "ray_job.py import audioset_10_10_0.4593.pth --data data/audioset --out runs/published",
    )
    step.add_argument("checkpoint", help="file or folder of the trained model")
    step.add_argument("--data", required=True, help="folder of the prepared data set")
    step.add_argument("--out", required=True, help="folder of the run")
    step.add_argument(
        "--recipe", help="settings of the run (default: the checkpoint's, where it tells)"
    )
    _add_set_option(step)


def _add_export(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "export",
        export,
        "Write weights of a run as a folder that transformers loads, and as ast.safetensors in it, "
        "which `import` and model.weights_file read.",
        "ray_job.py export runs/esc50 --out models/esc50",
    )
    step.add_argument("run", help="folder of the run")
    step.add_argument("--out", required=True, help="folder to write")
    _add_weights_option(step)


def _add_job_commands(steps: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    step = _add_step(
        steps,
        "submit",
        submit,
        "Run a step on a Ray cluster through its job server; follows the log and ends with the "
        "job's exit status.",
        "ray_job.py submit --address http://head:8265 -- prepare s3://lab/esc50.parquet "
        "--out s3://lab/esc50",
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
    listing = _add_step(steps, "jobs", list_jobs, "List the jobs of a cluster.", "ray_job.py jobs")
    show = _add_step(steps, "logs", logs, "Print a job's log.", "ray_job.py logs JOB --follow")
    show.add_argument("id", help="the job's id")
    show.add_argument("--follow", action="store_true", help="go on until the job ends")
    end = _add_step(steps, "stop", stop, "Stop a job.", "ray_job.py stop JOB")
    end.add_argument("id", help="the job's id")
    for one in (step, listing, show, end):
        one.add_argument(
            "--address",
            help="the job server (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
        )


def _add_step(
    steps: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[Arguments], int | None],
    description: str,
    example: str,
) -> argparse.ArgumentParser:
    step = steps.add_parser(
        name, help=description, description=description, epilog=f"example: {example}"
    )
    step.set_defaults(command=command)
    return step


def _add_training_options(
    step: argparse.ArgumentParser, out_help: str, *, must_train: bool = True
) -> None:
    recipe = None if must_train else "?"
    step.add_argument("recipe", nargs=recipe, help="settings of the run (.toml)")
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
        choices=("last", "best", "averaged", "ema"),
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


if __name__ == "__main__":
    sys.exit(main())
