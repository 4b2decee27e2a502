"""Which names of backbones timm certainly knows, found out without loading timm and PyTorch.

In: timm's source files of plain transformers. Out: whether they hold a name. Others are left to
`trainer.model.build.check_backbone`, which loads timm for seconds.
"""

import re
from importlib.util import find_spec
from pathlib import Path

_FILES = ("deit.py", "vision_transformer.py")


def is_surely_known(name: str) -> bool:
    """Whether timm has this DeiT or ViT, with the weights that the name may end in.

    False where only timm can tell.
    """
    if not name.startswith(("deit_", "vit_")):
        return False
    # An architecture is a function, and its weights a key.
    line = re.compile(rf"^(def {re.escape(name)}\(| +'{re.escape(name)}': _cfg\()", re.MULTILINE)
    return any(line.search(path.read_text(encoding="utf-8")) for path in _sources())


def _sources() -> list[Path]:
    spec = find_spec("timm")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [Path(folder, "models", name) for folder in folders for name in _FILES]
    return [path for path in paths if path.is_file()]
