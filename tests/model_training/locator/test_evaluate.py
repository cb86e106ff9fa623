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


def test_a_locator_that_knows_is_perfect_and_one_that_is_off_is_not(
    heads: list[Head], locator_recipe: LocatorRecipe
) -> None:
    """Boxes about the true middles hold all; moved by 10 mm they do not, and the distance says so."""
    locator = locator_recipe.declaration(heads)
    for moved in (0.0, 10.0):
        scans = [draw([heads[k % 3]], np.random.default_rng([5, k]), whole=True) for k in range(3)]
        found = evaluate_locator(oracle(scans, locator, moved), locator, heads, n=3, seed=5)
        assert np.allclose([one.distance_mm for one in found], moved, atol=1.1)  # places are 2 mm apart
        assert all((min(one.contained) > 0.99) == (moved == 0) for one in found)


def oracle(scans: list[Drawn], locator: Locator, moved: float) -> Locate:
    """Return a locator that looks at the labels, and is wrong by so many millimetres."""
    coming = iter(scans)

    def locate(_: Volume) -> Boxes:
        drawn = next(coming)
        centres = [points_of(drawn, part.landmark).mean(axis=0) + np.array([moved, 0, 0]) for part in locator.parts]
        return Boxes([Box(part, at, np.eye(3)) for part, at in zip(locator.parts, centres, strict=True)], {})

    return locate


def test_a_refusal_counts_as_nothing_held(heads: list[Head], locator_recipe: LocatorRecipe) -> None:
    """No share in a box, no distance; and in scans without the anatomy as right."""
    locator = locator_recipe.declaration(heads)

    def refuses(_: Volume) -> Boxes:
        msg = "nowhere"
        raise AnatomyNotFound(msg)

    (one,) = evaluate_locator(refuses, locator, heads, n=1, seed=0)
    assert one.contained == (0.0, 0.0)
    assert np.isnan(one.distance_mm).all()
    assert found_in_nothing(refuses, locator, heads, n=2, seed=0) == {"no head": 0, "cut off above": 0}


def test_scans_that_are_cut_off_show_none_of_the_structures(heads: list[Head], locator_recipe: LocatorRecipe) -> None:
    """Their highest voxel lies below the first plane: a locator sees other scans there than whole ones."""
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
    """One that finds everything nowhere: no box holds, everything empty is found in."""
    locator = locator_recipe.declaration(heads)

    def finds(_: Volume) -> Boxes:
        return Boxes([Box(part, np.full(3, 1e3), np.eye(3)) for part in locator.parts], {})

    said = locating(finds, locator, heads, n=2, seed=0)
    assert (said.boxes_hold, said.found_in_empty, said.empty_scans, said.heads) == (0, 2, 2, 3)
    assert not said.validated_on_experts
