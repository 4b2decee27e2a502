#!/usr/bin/env python3
"""Every step of ast-ray, here or on a Ray cluster: `ray_job.py STEP --help` explains each.

Each function here takes the options of a step, which `cluster/command_line.py` lists, calls what
does the work, and prints what came of it. Heavy libraries are imported within the functions that
need them, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.command_line import make_parser
from cluster.program import program_name
from pipeline.errors import UserError
from pipeline.storage import absolute
from recipes import find_recipe

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
        return STEPS[arguments.command](arguments) or 0
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
    recipe = load_recipe(find_recipe(arguments.recipe), arguments.set)
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
        None if arguments.recipe is None else find_recipe(arguments.recipe),
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

    recipe, data = find_recipe(arguments.recipe), absolute(arguments.data)
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
        "" if arguments.recipe is None else find_recipe(arguments.recipe),
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
    recipe = None
    if command:
        # A mistake in the step's own options is better found here than on the cluster.
        step = make_parser().parse_args(command)
        recipe = _recipe_to_upload(getattr(step, "recipe", None))
    return jobs.submit(
        command,
        recipe=recipe,
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


STEPS: dict[str, Callable[[Arguments], int | None]] = {
    "download": download,
    "manifest": manifest,
    "prepare": prepare,
    "verify": verify,
    "train": train,
    "evaluate": evaluate,
    "ensemble": ensemble,
    "cross-validate": cross_validate,
    "report": report,
    "import": import_checkpoint,
    "export": export,
    "submit": submit,
    "jobs": list_jobs,
    "logs": logs,
    "stop": stop,
}


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
    print(f"{program_name()}: error: {error}", file=sys.stderr)


def _given(path: str | None) -> str | None:
    """The path of an option that need not be there."""
    return None if path is None else absolute(path)


def _recipe_to_upload(given: str | None) -> str | None:
    """The recipe of a job if it is a local file: one that is known by name is uploaded anyway.

    Raises:
        UserError: neither a file nor a name. An absolute path may be one of the cluster's.
    """
    if given is None or given.startswith("s3://"):
        return None
    if Path(given).is_file():
        return given
    if not Path(given).is_absolute():
        find_recipe(given)
    return None


def _session(arguments: Arguments) -> AbstractContextManager[None]:
    from cluster.session import connect

    return connect(address=arguments.address, num_cpus=arguments.num_cpus)


def _workers(arguments: Arguments) -> "Workers":
    from trainer.ray_workers import Workers

    return Workers(num=arguments.workers, cpus=arguments.cpus_per_worker, use_gpu=arguments.gpu)


if __name__ == "__main__":
    sys.exit(main())
