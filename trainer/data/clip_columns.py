"""Ids, labels and shards of millions of clips, packed into a few arrays that threads share.

In: columns of a data set's index, piece by piece. Out: sequences with an item per clip, which take
some bytes a clip in place of Python's objects.

N clips.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Codes = NDArray[np.int32]


class ClipIds(Sequence[str]):
    """The id of each clip, `[N]`."""

    def __init__(self, chunks: Iterable[pa.Array]) -> None:
        self._chunks = [chunk for chunk in chunks if len(chunk)]
        self._starts = [0, *accumulate(map(len, self._chunks))]

    @classmethod
    def of(cls, ids: Sequence[str]) -> "ClipIds":
        """Those of a list."""
        return cls([pa.array(ids, pa.string())])

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        chunk = bisect_right(self._starts, number) - 1
        return str(self._chunks[chunk][number - self._starts[chunk]])

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks:
            yield from chunk.to_pylist()

    def num_shared(self, other: "ClipIds") -> int:
        """How many clips two sets share; in each, ids are unique."""
        if len(other) > len(self):
            return other.num_shared(self)
        others = pa.chunked_array(other._chunks, pa.string())
        return sum(pc.sum(pc.is_in(ids, value_set=others)).as_py() for ids in self._chunks)


class ClipLabels:
    """The class indices of each clip's labels, `[N]` lists."""

    def __init__(self, ends: NDArray[np.int64], classes: Codes) -> None:
        """`ends`: for each clip the end of its range in `classes`, `[N]`."""
        self.ends, self.classes = ends, classes

    @classmethod
    def of(cls, lists: Iterable[Sequence[int]]) -> "ClipLabels":
        """Those of lists."""
        lists = list(lists)
        classes = [index for labels in lists for index in labels]
        ends = np.cumsum([len(labels) for labels in lists], dtype=np.int64)
        return cls(ends, np.array(classes, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Codes:
        start = self.ends[index - 1] if index else 0
        return self.classes[start : self.ends[index]]

    def __iter__(self) -> Iterator[Codes]:
        return map(self.__getitem__, range(len(self)))

    def distinct_pairs(self, start: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Clips and classes of all labels of the clips from `start` to `end`, in order.

        A label that a clip lists twice counts once, as it does in the clip's targets.
        """
        ends = self.ends[start:end]
        first = self.ends[start - 1] if start else 0
        classes = self.classes[first : ends[-1] if len(ends) else first]
        clips = np.repeat(np.arange(start, start + len(ends)), np.diff(ends, prepend=first))
        num_classes = int(classes.max(initial=0)) + 1
        pairs = np.sort(clips * num_classes + classes)
        pairs = pairs[np.diff(pairs, prepend=-1) != 0]
        clips, distinct = np.divmod(pairs, num_classes)
        return clips, distinct

    def num_distinct(self) -> NDArray[np.int64]:
        """How many different labels each clip has, `[N]`."""
        clips, _ = self.distinct_pairs(0, len(self))
        return np.bincount(clips, minlength=len(self))


class ClipShards(Sequence[str]):
    """The path of each clip's tar, `[N]`."""

    def __init__(self, paths: Sequence[str], numbers: Codes) -> None:
        """`numbers`: for each clip that of its path, `[N]`."""
        self.paths, self._numbers = list(paths), numbers

    @classmethod
    def of(cls, paths: Sequence[str]) -> "ClipShards":
        """Those of a list."""
        distinct = {path: number for number, path in enumerate(dict.fromkeys(paths))}
        return cls([*distinct], np.array([distinct[path] for path in paths], dtype=np.int32))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.paths[number] for number in self._numbers[index]]
        return self.paths[int(self._numbers[index])]

    def moved(self, paths: Sequence[str]) -> "ClipShards":
        """The same with other paths, in the order of `paths`."""
        return ClipShards(paths, self._numbers)
