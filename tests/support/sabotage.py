"""Processes in which decoding some clips kills the process or hangs.

A `sitecustomize` in the `PYTHONPATH` of such a process does it; nothing in the project knows of it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.steps import ray_folder

SABOTAGE = """
import os, signal, sys, time
from importlib.machinery import PathFinder

DEEDS, NOTE, MAX_DECODE_S = {deeds!r}, {note!r}, {max_decode_s!r}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def held():
    while os.path.exists(NOTE + ".hold"):
        time.sleep(0.05)


def once(deed):
    if not os.path.exists(NOTE):
        import ray

        with open(NOTE + ".new", "x") as note:
            note.write(ray.get_runtime_context().get_node_id())
        os.rename(NOTE + ".new", NOTE)
        deed()


def make_deadly(soundfile):
    class SoundFile(soundfile.SoundFile):
        def __init__(self, source, *arguments, **options):
            for path, deed in DEEDS.items():
                with open(path, "rb") as file:
                    if file.read() == source.getvalue():
                        eval(deed)
            super().__init__(source, *arguments, **options)

    soundfile.SoundFile = SoundFile


def make_impatient(build):
    build.MAX_DECODE_S = MAX_DECODE_S


class Finder:
    changes = {{"soundfile": make_deadly, "pipeline.shards.build": make_impatient}}

    def find_spec(self, name, path=None, target=None):
        change = self.changes.get(name)
        spec = PathFinder.find_spec(name, path) if change else None
        if spec:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), change(module))
        return spec


sys.meta_path.insert(0, Finder())
"""


@contextmanager
def sabotaged(
    folder: Path, deeds: Mapping[str, str], *, max_decode_s: float = 600.0
) -> Iterator[Path]:
    """Set what decoding a file does in processes started in the block.

    Yields where a process leaves the id of its node before it does what it does only `once`.
    """
    note = folder / "note"
    (folder / "sitecustomize.py").write_text(
        SABOTAGE.format(deeds=dict(deeds), note=str(note), max_decode_s=max_decode_s)
    )
    with ray_folder() as short, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", short)
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield note
