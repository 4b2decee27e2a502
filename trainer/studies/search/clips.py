"""The clips that a search chooses by, which are not those that the recipe reports on.

In: the recipe's data settings, the data set, and what the user asked for. Steps: the first of

1. the split or fold that the user named;
2. the recipe's evaluation split, if its name says that it is for choosing (`validation`);
3. such a split of the data set, unless the recipe holds out a fold;
4. a fold of the training split: the next after the one that the recipe holds out and reports, which
   is neither trained nor evaluated on.

Out: the data settings of the search's runs.
"""

from dataclasses import dataclass, replace

from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import SettingValueError, UserError
from pipeline.manifest.splits import SPLITS
from trainer.data.settings import DataSettings

_VALIDATION = "validation"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenClips:
    """The clips to choose by."""

    data: DataSettings
    """Of the search's runs."""
    reported: str
    """Name of the clips that the recipe evaluates on."""
    is_for_choosing: bool
    """Whether the recipe's own evaluation split is for choosing, so that others are reported."""

    @property
    def name(self) -> str:
        """Of the clips."""
        return self.data.eval_name

    @property
    def are_reported(self) -> bool:
        """Whether the recipe reports on the very clips that the search chooses by."""
        return self.name == self.reported and not self.is_for_choosing


def choose_clips(
    data: DataSettings, dataset: PreparedDataset, *, split: str | None = None, fold: int = 0
) -> ChosenClips:
    """The clips to choose by.

    Args:
        data: of the recipe.
        dataset: the prepared data set.
        split: a split that the user named.
        fold: a fold of the training split that the user named.

    Raises:
        UserError: the data set has no such split or fold, or none but those to report.
    """
    is_for_choosing = data.fold == 0 and _is_validation(data.eval_split)
    if fold:
        chosen = _hold_out(data, fold, "--fold")
    elif split:
        chosen = replace(data, fold=0, eval_split=split)
        if data.fold:
            chosen = replace(chosen, unused_folds=(*data.unused_folds, data.fold))
    elif is_for_choosing:
        chosen = data
    else:
        chosen = _default(data, dataset)
    return ChosenClips(data=chosen, reported=data.eval_name, is_for_choosing=is_for_choosing)


def _default(data: DataSettings, dataset: PreparedDataset) -> DataSettings:
    found = sorted(filter(_is_validation, dataset.card.splits))
    if found and not data.fold:
        return replace(data, eval_split=found[0])
    present = set(dataset.folds(data.train_split))
    folds = sorted(present - {0, *data.unused_folds})
    free = [fold for fold in folds if fold != data.fold]
    # At least one more to train on.
    if not free or (len(free) < 2 and 0 not in present):
        has = f"only folds {' '.join(map(str, folds))}" if folds else "no folds"
        raise UserError(
            dataset.path,
            f"split {data.train_split!r} has {has}, so there are no clips to choose settings by "
            f"other than {data.eval_name!r}, which the recipe reports on",
            "`manifest --folds 5` assigns folds; or name other clips by --split or --fold",
        )
    after = [fold for fold in free if fold > data.fold]
    return _hold_out(data, (after or free)[0], dataset.path)


def _hold_out(data: DataSettings, fold: int, where: str) -> DataSettings:
    """Evaluate on a fold; the one that the recipe holds out is not used."""
    reported = (data.fold,) if data.fold not in (0, fold) else ()
    try:
        return replace(data, fold=fold, unused_folds=(*data.unused_folds, *reported))
    except SettingValueError as error:
        raise UserError(where, error.what) from error


def _is_validation(split: str) -> bool:
    return SPLITS.get(split.lower()) == _VALIDATION
