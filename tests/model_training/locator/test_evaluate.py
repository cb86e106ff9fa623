"""What is said of a locator is what it does."""

import numpy as np

from model_training.locator.evaluate import Locate, evaluate_locator, found_in_nothing, locating, points_of
from model_training.locator.heads import Head
from model_training.locator.recipe import LocatorRecipe
from model_training.locator.synthesis import Drawn, draw
from service.bundle.schema import Locator
from service.errors import AnatomyNotFound
from service.pipeline.locate import Box, Boxes
from service.volume import Volume


def test_boxes_are_measured_against_the_labels(heads: list[Head], locator_recipe: LocatorRecipe) -> None:
    """Boxes about the true middles hold everything; boxes moved by 10 mm do not, and the distance is 10 mm."""
    locator = locator_recipe.declaration(heads)
    for moved in (0.0, 10.0):
        scans = [draw([heads[k % 3]], np.random.default_rng([5, k]), whole=True) for k in range(3)]
        results = evaluate_locator(oracle(scans, locator, moved), locator, heads, n=3, seed=5)
        assert np.allclose([result.distance_mm for result in results], moved, atol=1.1)  # places are 2 mm apart
        assert all((min(result.contained) > 0.99) == (moved == 0) for result in results)


def oracle(scans: list[Drawn], locator: Locator, moved: float) -> Locate:
    """Return a locator that knows the labels and is off by `moved` millimetres."""
    coming = iter(scans)

    def locate(_: Volume) -> Boxes:
        drawn = next(coming)
        centres = [points_of(drawn, part.landmark).mean(axis=0) + np.array([moved, 0, 0]) for part in locator.parts]
        return Boxes([Box(part, at, np.eye(3)) for part, at in zip(locator.parts, centres, strict=True)], {})

    return locate


def test_a_refused_scan_holds_nothing(heads: list[Head], locator_recipe: LocatorRecipe) -> None:
    """A refused scan has a contained share of 0 and no distance; refusing an empty scan is right."""
    locator = locator_recipe.declaration(heads)

    def refuses(_: Volume) -> Boxes:
        msg = "nowhere"
        raise AnatomyNotFound(msg)

    (result,) = evaluate_locator(refuses, locator, heads, n=1, seed=0)
    assert result.contained == (0.0, 0.0)
    assert np.isnan(result.distance_mm).all()
    assert found_in_nothing(refuses, locator, heads, n=2, seed=0) == {"no head": 0, "cut off above": 0}


def test_scans_that_are_cut_off_show_none_of_the_structures(heads: list[Head], locator_recipe: LocatorRecipe) -> None:
    """In a scan that is cut off, every voxel of the structures lies below the first plane."""
    locator = locator_recipe.declaration(heads)
    seen: list[Volume] = []

    def finds(volume: Volume) -> Boxes:
        seen.append(volume)
        return Boxes([Box(locator.parts[0], np.zeros(3), np.eye(3))], {})

    assert found_in_nothing(finds, locator, heads, n=3, seed=0) == {"no head": 3, "cut off above": 3}
    for k, volume in enumerate(seen[1::2]):
        rng = np.random.default_rng([0, k])
        draw([], rng)
        points = points_of(draw(heads, rng, whole=True), "left hippocampus")
        index = points @ np.linalg.inv(volume.affine)[:3, :3].T + np.linalg.inv(volume.affine)[:3, 3]
        assert not ((index > -0.5) & (index < np.array(volume.shape) - 0.5)).all(axis=1).any()


def test_the_card_counts_scans(heads: list[Head], locator_recipe: LocatorRecipe) -> None:
    """For a locator that always finds boxes in the wrong place, no box holds its structure and every empty scan counts as found."""
    locator = locator_recipe.declaration(heads)

    def finds(_: Volume) -> Boxes:
        return Boxes([Box(part, np.full(3, 1e3), np.eye(3)) for part in locator.parts], {})

    said = locating(finds, locator, heads, n=2, seed=0)
    assert (said.boxes_hold, said.found_in_empty, said.empty_scans, said.heads) == (0, 2, 2, 3)
    assert not said.validated_on_experts
