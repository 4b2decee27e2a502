"""What may stand in place of a file, and must be neither waited for nor taken for one."""

import os
import socket
from collections.abc import Callable
from pathlib import Path


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as endpoint:
        folder = os.open(path.parent, os.O_PATH)
        # By way of the folder's descriptor, as paths of sockets are limited in length.
        endpoint.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


REPLACED: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
}
"""A file that is written atomically takes the place of these."""
IN_PLACE: dict[str, Callable[[Path], object]] = {**REPLACED, "folder": Path.mkdir}
