"""The clips of a prepared data set that members are scored on, or chosen on.

In: a data set, a split and a fold. Out: the clips; an error if those to choose on are reported.
"""

from dataclasses import dataclass

from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from pipeline.terminal.units import counted
from trainer.data.clips import ClipSet, select_clips


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SplitClips:
    """A split of a data set, or one fold of it."""

    dataset: PreparedDataset
    split: str
    fold: int
    """0: the whole split."""
    clips: ClipSet


def open_clips(dataset: PreparedDataset, split: str, fold: int) -> SplitClips:
    """The clips of a split.

    Raises:
        UserError: the data set has no such split or fold.
    """
    clips = select_clips(dataset, split, fold)
    return SplitClips(dataset=dataset, split=split, fold=fold, clips=clips)


def refuse_overlap(choosing: ClipSet, reported: ClipSet) -> None:
    """Refuse to choose on clips that are reported.

    Raises:
        UserError: some are in both.
    """
    if num_shared := choosing.ids.num_shared(reported.ids):
        raise UserError(
            "--choose-on",
            f"{num_shared:,} of its {counted(len(choosing), 'clip')} "
            f"{'is' if num_shared == 1 else 'are'} among those reported "
            f"({reported.name!r}), whose scores the choice would flatter",
            "choose on a split that is not reported: --split names the one that is",
        )
