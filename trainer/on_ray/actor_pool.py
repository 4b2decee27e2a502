"""Actors of Ray Data that are given their arguments by value.

Ray Data puts the arguments of its actors into the object store, where they might be lost before an
actor is restarted. Ray says so on the terminal, in the log of the process that starts them, for
each pool. Ray 2.60 has no option for it: two private members are replaced here.
"""

from operator import attrgetter

from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

VALUES = {"_map_transformer_ref": "_map_transformer", "_data_context_ref": "data_context"}
"""Properties with a reference, and those with its value, which are a few kilobytes."""


def pass_by_value() -> None:
    """Call it before the actors start."""
    for name, value in VALUES.items():
        setattr(ActorPoolMapOperator, name, property(attrgetter(value)))
