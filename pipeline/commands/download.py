"""`download`: fetch a public data set from its server."""

import argparse

from pipeline.commands.step import Step, path
from pipeline.manifest.public_datasets import DATASETS


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=tuple(DATASETS), help="which data set")
    parser.add_argument("--out", type=path, required=True, help="local folder to create")
    parser.add_argument("--url", help="another address of the same archive")


def run(arguments: argparse.Namespace) -> None:
    from pipeline.manifest.download import download

    is_new = download(DATASETS[arguments.name], arguments.out, arguments.url)
    print(arguments.out if is_new else f"{arguments.out}: already complete")


STEP = Step(
    name="download",
    summary="Fetch a public data set from its server and check it. Run the same command again "
    "to resume.",
    example="speech-commands --out data/speech-commands",
    add_options=add_options,
    run=run,
)
