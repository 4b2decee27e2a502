"""The recipe of the best run, as a TOML file that `train` takes as it is.

In: the record of a search. Out: `best.toml`: what the recipe sets and what the search chose. It
evaluates on the clips of the recipe, not on those that the search chose by. Published scores are
left out, as they are of other settings.
"""

import json
from typing import Any

from pipeline import storage
from pipeline.terminal.units import counted
from trainer.recipe.recipe import Recipe
from trainer.studies.search.record import SearchRecord, SearchRun
from trainer.studies.search.result import show

FILE = "best.toml"


def write_best(output: str, record: SearchRecord) -> str:
    """Write the recipe of the best run; returns its path."""
    best = record.best_run
    assert best is not None
    path = storage.join(output, FILE)
    storage.write_bytes(path, (_header(output, record, best) + _toml(record, best)).encode())
    return path


def _header(output: str, record: SearchRecord, best: SearchRun) -> str:
    score = best.scores[record.metric]
    chosen = ", ".join(f"{name} = {show(value)}" for name, value in best.settings.items())
    lines = [
        f"The best of {counted(len(record.trials), 'run')} of a search over "
        f"{', '.join(record.space)}, from the recipe {record.recipe}:",
        f"{chosen}.",
        "",
        f"Chosen by {record.metric} {score:.4f} on {record.chosen_by}, which is therefore no score "
        "to report.",
    ]
    if record.are_reported:
        lines += ["This recipe evaluates on the same clips: its score there is too good."]
    elif record.recipe_evaluates_on != record.chosen_by:
        lines += [
            f"This recipe evaluates on {record.recipe_evaluates_on}, which the search did not use."
        ]
    lines += [
        f"Table of all runs: {storage.join(output, 'search.html')}",
        "",
        f"Command: ray_job.py train {storage.join(output, FILE)} --data {record.data} --out RUN",
    ]
    # Names may hold anything, comments no control characters.
    printable = ("".join(c if c.isprintable() else " " for c in line) for line in lines)
    return "".join(f"# {line}".rstrip() + "\n" for line in printable)


def _toml(record: SearchRecord, best: SearchRun) -> str:
    """Settings that differ from the defaults, and those that the search chose."""
    recipe, defaults = record.base().to_json(), Recipe(name="").to_json()
    del recipe["published"]
    for setting, value in best.settings.items():
        section, _, key = setting.partition(".")
        recipe[section][key] = value
    parts = []
    for section, keys in recipe.items():
        lines = [
            f"{key} = {_value(value)}"
            for key, value in keys.items()
            if f"{section}.{key}" in best.settings or value != defaults[section][key]
        ]
        if lines:
            parts.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _value(value: Any) -> str:
    """A value in TOML, whose strings and lists are those of JSON but for one character."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
