"""`submit`: run a step on a cluster."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.commands.job_options import add_server_option
from pipeline.commands.step import Step
from pipeline.errors import UserError
from pipeline.storage.paths import absolute, is_remote
from recipes import find_recipe

_logger = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[2]
_TRAINING_STEPS = ("train", "ensemble", "cross-validate", "search")
"""Steps with a recipe and settings, which can be checked before the job is sent."""


def submit_step(parse: Callable[[Sequence[str]], argparse.Namespace]) -> Step:
    """The step; `parse` parses the command of the step to run, and exits if it is invalid."""

    def run(arguments: argparse.Namespace) -> int:
        command = arguments.step[1:] if arguments.step[:1] == ["--"] else arguments.step
        recipe = None
        if command:
            # Mistakes in the step's options are reported here, before anything runs on the cluster.
            step = parse(command)
            if step.command == "submit":
                raise UserError("submit -- submit", "a job cannot submit jobs", "name one step")
            recipe = _recipe_to_upload(getattr(step, "recipe", None), arguments.working_dir)
            _check_output(step, command)
            _check_settings(step, arguments.working_dir)
        if arguments.working_dir_exclude and not arguments.working_dir:
            raise UserError("--working-dir-exclude", "needs --working-dir")
        return (_print_rayjob if arguments.kuberay else _submit)(arguments, command, recipe)

    return Step(
        name="submit",
        summary="Run a step on a Ray cluster through its job server; follow the log, and exit with "
        "the job's status.",
        example="--address http://head:8265 -- prepare s3://lab/esc50.parquet --out s3://lab/esc50",
        add_options=_add_options,
        run=run,
    )


def _submit(arguments: argparse.Namespace, command: Sequence[str], recipe: str | None) -> int:
    from cluster import jobs
    from cluster.own_files import find_own_files
    from cluster.packages import parse_packages

    own = None
    if arguments.working_dir:
        own = find_own_files(Path(arguments.working_dir), arguments.working_dir_exclude)
        _logger.info("%s", own.note())
    return jobs.submit(
        command,
        recipe=recipe,
        own=own,
        packages=parse_packages(arguments.pip),
        image=arguments.image,
        address=arguments.address,
        wait=arguments.wait,
        environment=_environment(arguments),
        working_dir=str(PROJECT),
    )


def _print_rayjob(arguments: argparse.Namespace, command: Sequence[str], recipe: str | None) -> int:
    """Print a RayJob of KubeRay.

    Raises:
        UserError: an option is for a job server, or names files: a RayJob is sent none.
    """
    from cluster.packages import parse_packages
    from cluster.rayjob import rayjob_manifest

    for name, value, reason in (
        ("--address", arguments.address, "nothing is sent"),
        ("--no-wait", not arguments.wait, "nothing is sent"),
        ("--working-dir", arguments.working_dir, "a RayJob is sent no files"),
        ("--forward-credentials", arguments.forward_credentials, "a RayJob names secrets alone"),
    ):
        if value:
            raise UserError(name, f"does not go with --kuberay: {reason}", "leave it out")
    if recipe:
        remedy = "put it into a bucket or into the image, or give a recipe by name"
        raise UserError(recipe, "a RayJob is sent no files", remedy)
    text = _read_manifests(arguments.kuberay)
    job = rayjob_manifest(
        text,
        arguments.kuberay,
        command,
        environment=_environment(arguments),
        packages=parse_packages(arguments.pip),
        image=arguments.image,
    )
    print(job, end="")
    return 0


def _read_manifests(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UserError(path, f"cannot be read ({reason})") from error


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    from cluster import jobs

    return jobs.forwarded_environment(
        arguments.env, credentials=arguments.forward_credentials, environ=os.environ
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return once the job is submitted"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="also pass this environment variable to the job",
    )
    parser.add_argument(
        "--forward-credentials",
        action="store_true",
        help="pass the AWS keys to the job; everyone with access to the job server can see them",
    )
    parser.add_argument(
        "--working-dir",
        metavar="DIR",
        help="also upload the files of this folder: the step finds them by their paths in it, such "
        "as an own recipe or a table (hidden files, data, runs, archives and weights are left out)",
    )
    parser.add_argument(
        "--working-dir-exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out files and folders of DIR by name (*.wav), or by path (/notes/old)",
    )
    parser.add_argument(
        "--pip",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="install for this job: a requirement such as librosa==0.11.0, a wheel (.whl), which "
        "is uploaded, or a file of requirements (.txt)",
    )
    parser.add_argument(
        "--image",
        help="run the job in a container of this image, which has the program; the nodes need "
        "podman. With --kuberay, the image of all nodes",
    )
    parser.add_argument(
        "--kuberay",
        metavar="FILE",
        help="send nothing: print the step as a RayJob with the cluster in this manifest (YAML of "
        "a RayCluster or RayJob; - for standard input), for kubectl create -f -",
    )
    parser.add_argument(
        "step",
        nargs=argparse.REMAINDER,
        metavar="-- STEP ...",
        help="the step to run, with its options",
    )
    add_server_option(parser)


def _check_output(step: argparse.Namespace, command: Sequence[str]) -> None:
    """Refuse to write into the job's own folder, which goes with the job.

    Raises:
        UserError: `--out` is relative to it.
    """
    output = getattr(step, "out", None)
    if not output or is_remote(output):
        return
    # The parser has made `output` absolute here: look how it was given.
    values = [value for item in command for value in (item, item.partition("=")[2]) if value]
    if not any(value.startswith(("/", "~")) and absolute(value) == output for value in values):
        raise UserError(
            "--out",
            f"{os.path.relpath(output)} would be in the job's own folder, which goes with the job",
            "give a path in a bucket, or the absolute one on a disk that all nodes share",
        )


def _check_settings(step: argparse.Namespace, working_dir: str | None) -> None:
    """Check a recipe and the settings of a step that trains; a recipe that is not here is passed.

    Raises:
        UserError: the recipe or a setting is invalid.
    """
    if step.command not in _TRAINING_STEPS or not step.recipe or is_remote(step.recipe):
        return
    from trainer.recipe.parse import load_recipe

    own = _in_working_dir(step.recipe, working_dir)
    if own is not None:
        load_recipe(str(own), step.set)
    elif Path(step.recipe).is_file() or not Path(step.recipe).is_absolute():
        load_recipe(find_recipe(step.recipe), step.set)


def _in_working_dir(given: str, working_dir: str | None) -> Path | None:
    """The file that a relative path names in the folder, if there is one."""
    if not working_dir or Path(given).is_absolute():
        return None
    path = Path(working_dir) / given
    return path if path.is_file() else None


def _recipe_to_upload(given: str | None, working_dir: str | None) -> str | None:
    """The recipe of a job if it is a local file.

    Named recipes are uploaded with the program, and those of `working_dir` with that.

    Raises:
        UserError: neither a file nor a name. An absolute path may exist on the cluster only.
    """
    if given is None or is_remote(given):
        return None
    if _in_working_dir(given, working_dir) is not None:
        return None
    if Path(given).is_file():
        return given
    if not Path(given).is_absolute():
        find_recipe(given)
    return None
