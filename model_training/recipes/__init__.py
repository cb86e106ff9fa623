"""Recipes, one file per data set: combinations of parts that live elsewhere."""

from typing import Final

from model_training.config import Recipe
from model_training.recipes.hippocampus import COMPARISON, HIPPOCAMPUS

RECIPES: Final[dict[str, Recipe]] = {"hippocampus": HIPPOCAMPUS}
"""Every recipe by the name that the command line takes."""

COMPARISONS: Final[dict[str, dict[str, Recipe]]] = {"hippocampus": COMPARISON}
"""The configurations of each recipe that are compared with one another."""
