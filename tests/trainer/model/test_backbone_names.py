"""Names of backbones are found in timm's sources, without loading it."""

import timm

from recipes import find_recipe
from tests.support.steps import PROJECT
from trainer.model.backbone_names import is_surely_known
from trainer.model.build import check_backbone
from trainer.recipe.parse import load_recipe


def test_names_that_are_found_are_accepted_by_timm() -> None:
    patterns = ("deit_*", "vit_*")
    names = [name for kind in patterns for name in timm.list_models(kind)]
    names += [name for kind in patterns for name in timm.list_pretrained(kind)]
    found = [name for name in names if is_surely_known(name)]
    assert len(found) > len(names) / 2
    for name in found:
        check_backbone(name)
    for other in ("deit_x", "vit_base_patch16_224.none", "resnet50", "vit_base_patch16_", "vit_"):
        assert not is_surely_known(other)


def test_backbones_of_the_recipes_are_found() -> None:
    recipes = [path.stem for path in (PROJECT / "recipes").glob("*.toml")]
    assert "demo" in recipes
    for name in recipes:
        assert is_surely_known(load_recipe(find_recipe(name), []).model.backbone), name
