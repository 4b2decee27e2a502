"""What a folder of the program holds, for errors where another kind is expected."""

from pipeline.storage.files import exists
from pipeline.storage.paths import join

KINDS = {
    "run.json": "a run",
    "ensemble.json": "an ensemble",
    "cross_validation.json": "a cross-validation",
    "repeated_cross_validation.json": "cross-validations of several seeds",
    "search.json": "a search",
    "card.json": "a prepared data set",
    "ast.safetensors": "an exported model",
    "model.onnx": "a model in ONNX",
    "tags.json": "tags of recordings",
}
"""By the file that marks the folder."""


def held_kind(folder: str, *, but: str = "") -> str:
    """What a folder holds, with the file that marks it; empty if unknown, or marked by `but`."""
    for name, kind in KINDS.items():
        if name != but and exists(join(folder, name)):
            return f"{kind} ({name})"
    return ""
