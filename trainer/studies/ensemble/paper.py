"""The ensembles of the paper among some members: Ensemble-S and Ensemble-M (section 3.1).

In: the members' recipes. Ensemble-S has models that differ in nothing but the seed; Ensemble-M has
these and models with other strides of the patches, nothing else changed. The paper has three of the
one and six of the other. Out: which members are which; empty where there are none.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress

from pipeline import storage
from pipeline.errors import UserError
from trainer.recipe.recipe import Recipe
from trainer.run.run_folder import MAY_DIFFER, read_recipe, read_run
from trainer.studies.ensemble.members import Member

_STRIDES = {"model.stride_frequency", "model.stride_time"}
_SEED = {"train.seed"}


def paper_ensembles(recipes: Mapping[str, Recipe]) -> dict[str, list[str]]:
    """The members of each of the paper's ensembles, by its name; `recipes`: of all members."""
    by_seed: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        by_seed.setdefault(_key(recipe, _SEED), []).append(name)
    seeds = max(by_seed.values(), key=len, default=[])  # the first, if tied
    if len(seeds) < 2:
        return {}
    key = _key(recipes[seeds[0]], _SEED | _STRIDES)
    strides = [name for name, other in recipes.items() if _key(other, _SEED | _STRIDES) == key]
    found = {"Ensemble-S": seeds}
    if len(strides) > len(seeds):
        found["Ensemble-M"] = strides
    return found


def member_recipes_of(members: Sequence[Member], names: Sequence[str]) -> dict[str, Recipe]:
    """The recipes of those members that the paper would average, by their names.

    Those are models with their last weights; a run whose settings cannot be read has no recipe.
    """
    recipes = {}
    for member, name in zip(members, names, strict=True):
        if member.outputs == "last" and storage.exists(storage.join(member.run, "run.json")):
            # An older run may have settings that no longer exist.
            with suppress(UserError):
                run = read_run(member.run)
                if run.imported_from is None:
                    recipes[name] = read_recipe(member.run, run)
    return recipes


def _key(recipe: Recipe, but: set[str]) -> str:
    """All settings but some, and but those that change no score, as text."""
    left_out = MAY_DIFFER | but
    settings = {
        f"{section}.{key}": value
        for section, keys in recipe.to_json().items()
        for key, value in keys.items()
        if not {section, f"{section}.{key}"} & left_out
    }
    return json.dumps(settings, sort_keys=True)
