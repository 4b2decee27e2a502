"""Weights from a file or folder, whoever trained them.

In: a path, local or on S3: the authors' `.pth`, a folder of transformers, a run folder, or what
`trainer.exchange.export_transformers` writes. Steps: look which it is, read tensors only, rename
them, find out patch grid, classes and normalisation. Out: an `AstCheckpoint`; or, from a file of a
timm backbone, its state dict.
"""

from collections.abc import Mapping
from typing import Any

from pipeline import storage
from trainer.checkpoints.ast_checkpoint import AstCheckpoint
from trainer.checkpoints.from_authors import from_authors
from trainer.checkpoints.from_own import (
    EXPORTED_NAME,
    from_exported,
    read_exported_folder,
    read_run_folder,
)
from trainer.checkpoints.from_transformers import from_transformers, read_transformers_folder
from trainer.checkpoints.names import (
    from_authors_state,
    is_authors_state,
    is_transformers_state,
)
from trainer.checkpoints.state_files import State, read_state


def read_weights(path: str, like: Mapping[str, Any]) -> AstCheckpoint | State:
    """The checkpoint of an AST, or else a timm backbone's state dict, from a file or folder.

    Args:
        path: a run folder (its newest checkpoint); a folder of transformers or one that `export`
            wrote; or a `.safetensors`, `.pth`, `.pt` or `.bin` file. Local or in a bucket.
        like: settings of the recipe's model: the patch grid, if neither the shapes nor the name of
            an authors' file tell it.

    Raises:
        UserError: the path holds no such weights, or they are damaged or of another model.
    """
    for name, read in (
        ("run.json", read_run_folder),
        (EXPORTED_NAME, read_exported_folder),
        ("config.json", read_transformers_folder),
    ):
        if storage.exists(storage.join(path, name)):
            return read(path)
    state = read_state(path)
    if is_authors_state(state):
        return from_authors(path, from_authors_state(state, path), like)
    if is_transformers_state(state):
        return from_transformers(path, state, path.rpartition("/")[0])
    if "head_norm.weight" in state:
        return from_exported(path, state)
    return state
