"""The command `ray` for nodes that share a machine with busy cores."""

import os
from typing import Any

from ray._private.node import Node
from ray.scripts import scripts

from tests.support.patience import PATIENCE


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
    os.environ.update(PATIENCE)
    name_files_apart()
    scripts.main()
