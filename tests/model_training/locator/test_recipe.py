"""A recipe and label maps make a declaration."""

from pathlib import Path

from model_training.locator.heads import read_heads
from model_training.locator.recipe import LocatorRecipe
from service.bundle.schema import Locator


def test_held_out_heads_take_no_part(maps: Path, locator_recipe: LocatorRecipe) -> None:
    """The held-out heads are the last by name."""
    train, held_out = locator_recipe.split(read_heads(maps))
    assert ([h.name for h in train], [h.name for h in held_out]) == (["head_0", "head_1"], ["head_2"])


def test_the_declaration_is_a_locator(maps: Path, locator_recipe: LocatorRecipe) -> None:
    """The declaration survives a round trip through service.json."""
    declaration = locator_recipe.declaration(read_heads(maps))
    assert Locator.model_validate_json(declaration.model_dump_json()) == declaration
    assert [part.landmark for part in declaration.parts] == ["left hippocampus", "right hippocampus"]
