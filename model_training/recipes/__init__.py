"""Recipes, one module per data set; their shared parts are in `blocks`."""

from typing import Final

from model_training.config import Recipe
from model_training.locator.recipe import LocatorRecipe
from model_training.recipes import acdc17, amos22, brats21, hippocampus, kits23

RECIPES: Final[dict[str, Recipe]] = {
    "acdc17": acdc17.ACDC17,
    "acdc17-small": acdc17.ACDC17_SMALL,
    "amos22": amos22.AMOS22,
    "amos22-small": amos22.AMOS22_SMALL,
    "brats21": brats21.BRATS21,
    "brats21-small": brats21.BRATS21_SMALL,
    "hippocampus": hippocampus.HIPPOCAMPUS,
    "kits23": kits23.KITS23,
    "kits23-small": kits23.KITS23_SMALL,
}
"""Every recipe by its name on the command line."""

COMPARISONS: Final[dict[str, dict[str, Recipe]]] = {
    "acdc17-small": acdc17.COMPARISON,
    "hippocampus": hippocampus.COMPARISON,
}
"""The configurations that are compared, by recipe."""

LOCATORS: Final[dict[str, LocatorRecipe]] = {"hippocampus": hippocampus.LOCATOR}
"""The locators, by recipe."""
