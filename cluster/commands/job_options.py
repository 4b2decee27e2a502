"""Options of every step that talks to a job server."""

import argparse


def add_server_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        help="the job server (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)",
    )
