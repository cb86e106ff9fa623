"""Recipes, one file per data set: combinations of parts that live elsewhere."""

from typing import Final

from model_training.config import Recipe
from model_training.recipes import acdc17, hippocampus

RECIPES: Final[dict[str, Recipe]] = {
    "acdc17": acdc17.ACDC17,
    "acdc17-small": acdc17.ACDC17_SMALL,
    "hippocampus": hippocampus.HIPPOCAMPUS,
}
"""Every recipe by the name that the command line takes."""

COMPARISONS: Final[dict[str, dict[str, Recipe]]] = {
    "acdc17-small": acdc17.COMPARISON,
    "hippocampus": hippocampus.COMPARISON,
}
"""The configurations of each recipe that are compared with one another."""
