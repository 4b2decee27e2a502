"""The command `ray`, and clusters in a process, for nodes that share a machine with busy cores."""

import os
import time
from typing import Any

from ray._private import services
from ray._private.node import Node
from ray.scripts import scripts

START_S = 120.0
"""For a node to start; Ray gives it 30 s, which take a minute and more where the cores are busy."""


def be_patient() -> None:
    """Let nodes that this process starts have `START_S`."""
    get_node = services.get_node

    def wait_for_node(*where: Any) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return get_node(*where)  # type: ignore[no-untyped-call]
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise

    services.get_node = wait_for_node


def name_files_apart() -> None:
    """Name the sockets of a node after this process.

    Ray numbers them by the files that there are, so nodes that start at the same moment would
    choose the same names, and only one of them could start.
    """
    make_name = Node._make_inc_temp

    def make_own_name(
        node: Node, suffix: str = "", prefix: str = "", directory_name: str | None = None
    ) -> Any:
        return make_name(node, suffix, f"{prefix}-{os.getpid()}", directory_name)

    Node._make_inc_temp = make_own_name  # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    be_patient()
    name_files_apart()
    scripts.main()
