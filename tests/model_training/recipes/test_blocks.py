from pathlib import Path

import pytest

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.recipes import RECIPES
from model_training.recipes.blocks import cpu_schedule, held_out, licence_notice, segresnet_ds, small, unet
from service.bundle.network import build_network

NAMES = ["acdc17", "amos22", "brats21", "kits23"]
"""Recipes of the paper, each with a small variant."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_name_is_its_bundles_name(name: str) -> None:
    """The command line and the bundle call a recipe alike; only the shipped model has a longer name."""
    expected = {"hippocampus": "hippocampus-mr"}.get(name, name)

    assert RECIPES[name].service.name == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_small_variant_differs_where_it_must(name: str) -> None:
    """Data, folds, labels and loss are the paper recipe's; network, voxels and schedule are smaller."""
    paper, variant = RECIPES[name], RECIPES[f"{name}-small"]

    assert variant.cases is paper.cases
    assert (variant.train_splits, variant.validation_split) == (paper.train_splits, paper.validation_split)
    assert variant.service.labels == paper.service.labels
    assert (variant.binning, variant.ace_weight, variant.ace_after) == (
        paper.binning,
        paper.ace_weight,
        paper.ace_after,
    )
    assert (paper.service.network.name, variant.service.network.name) == ("SegResNetDS", "UNet")
    assert variant.service.spacing_mm > paper.service.spacing_mm
    assert variant.schedule.steps < paper.schedule.steps


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_networks_have_the_channels_that_the_recipe_declares(recipe: Recipe) -> None:
    """One input per channel, one output per label, the background among them."""
    arguments = recipe.service.network.arguments

    assert arguments["in_channels"] == len(recipe.service.channels)
    assert arguments["out_channels"] == len(recipe.service.labels)


def test_networks_can_be_built() -> None:
    """Both are on the allow-list; the U-Net takes a kernel size."""
    build_network(segresnet_ds(in_channels=2, out_channels=3))
    build_network(unet(in_channels=1, out_channels=2, channels=[4, 8], strides=[2], kernel_size=[3, 3, 1]))


def test_a_small_variant_takes_further_fields(recipe: Recipe) -> None:
    """Fields of the service's configuration, a network and an augmentation may be replaced."""
    network = unet(in_channels=1, out_channels=3, channels=[4, 8], strides=[2])

    variant = small(
        recipe, cpu_schedule(steps=200, batch_size=1, validate_every=100), network=network, patch_size=(4, 4, 4)
    )

    assert variant.service.name == f"{recipe.service.name}-small"
    assert (variant.service.network, variant.service.patch_size) == (network, (4, 4, 4))
    assert variant.augmentation is recipe.augmentation


def test_the_population_counts_persons_and_cases() -> None:
    """Two scans of one person and one of another are two persons and three cases."""
    population = held_out(dataset="d", citation="c", licence="l", modality="MR", anatomy="a")

    stated = population([Case(name, name[0], (Path(name),), Path(name)) for name in ("A1", "A2", "B1")])

    assert (stated.n_persons, stated.n_cases, stated.protocol) == (2, 3, "held-out")


def test_a_licence_notice_has_its_paragraphs_in_order() -> None:
    """Terms, origin with the changes, further weights, and last the licence of the code."""
    paragraphs = licence_notice("Terms.", "Trained on data.", "More.").rstrip("\n").split("\n\n")

    assert [paragraph.partition(".")[0] for paragraph in paragraphs[:3]] == ["Terms", "Trained on data", "More"]
    assert paragraphs[1].splitlines()[1].startswith("Changes: ")
    assert paragraphs[3].startswith("The code of Calibrant is licensed separately (Apache-2.0).")
