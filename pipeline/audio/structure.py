"""What the parts of a file tell, before anything is decoded."""

from typing import NamedTuple

SEVERAL = ("several recordings in one file",)
"""What is odd about such a file."""


class Structure(NamedTuple):
    """A file, walked part by part."""

    recordings: list[bytes]
    """The file as decoders read it best: without bytes that mislead them; several where recordings
    follow each other in it."""
    is_cut: bool = False
    """Whether it ends before its structure says, or that structure is damaged. A stretch that ends
    earlier can be used."""
    repairs: tuple[str, ...] = ()
    """What is odd, although no audio is missing."""
