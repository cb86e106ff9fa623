"""What every recipe of the paper must do; a test class of each recipe subclasses the suite."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest
import torch

from model_training.config import Recipe
from model_training.data.case import Case
from model_training.evaluation.evaluate import measure
from model_training.recipes import RECIPES

Train = Callable[[Recipe, Path], torch.nn.Module]
Shrink = Callable[[Recipe], Recipe]
Refused = Callable[[Recipe, Path], str]
WriteNifti = Callable[..., None]


class RecipeContract:
    """Suite of a recipe and its small variant, on a tiny data set in the published layout."""

    name: ClassVar[str]
    """Name of the recipe; the small variant's ends with ``-small``."""
    data_set: ClassVar[str]
    """Fixture that returns the tiny data set."""
    structures: ClassVar[list[str]]
    """Structures that are measured, in their order."""
    unknown_label: ClassVar[int]
    """A label value that the recipe does not know."""

    @pytest.fixture
    def data(self, request: pytest.FixtureRequest) -> Path:
        """Return the tiny data set."""
        folder: Path = request.getfixturevalue(self.data_set)
        return folder

    @pytest.fixture
    def case(self, data: Path) -> Case:
        """Return a training case."""
        case: Case = RECIPES[self.name].cases(data)["fold1"][0]
        return case

    @pytest.fixture
    def small(self, shrunk: Shrink) -> Recipe:
        """Return the small variant, shrunk to seconds."""
        return shrunk(RECIPES[f"{self.name}-small"])

    @pytest.mark.parametrize("suffix", ["", "-small"], ids=["paper", "small"])
    def test_it_trains_and_evaluates(self, suffix: str, data: Path, shrunk: Shrink, two_steps: Train) -> None:
        """Two steps train on small patches, then every structure is measured on the test set."""
        recipe = shrunk(RECIPES[self.name + suffix])
        expected = recipe.cases(data)["test"]

        network = two_steps(recipe, data)
        measurement = measure(network, recipe.service, expected, lambda _case: None)

        assert list(measurement.class_scores) == self.structures
        assert [case.case for case in measurement.cases] == [case.name for case in expected]
        assert all(sum(row) == 12 * 12 * 12 for case in measurement.cases for row in case.count)

    def test_an_unknown_label_value_is_refused(
        self, data: Path, case: Case, small: Recipe, refused: Refused, write_nifti: WriteNifti
    ) -> None:
        """An unknown label value is reported with its file before the first step."""
        image = nib.Nifti1Image.from_filename(case.label)
        labels = np.asarray(image.dataobj)
        write_nifti(case.label, np.where(labels == 1, self.unknown_label, labels).astype(np.uint8), image.affine)

        assert f"{case.label} holds the values [{self.unknown_label}]; the recipe knows" in refused(small, data)

    def test_a_label_on_another_grid_is_refused(
        self, data: Path, case: Case, small: Recipe, refused: Refused, write_nifti: WriteNifti
    ) -> None:
        """A label whose header puts it elsewhere is reported before the first step."""
        image = nib.Nifti1Image.from_filename(case.label)
        moved = np.array(image.affine)
        moved[0, 3] += 1.0
        write_nifti(case.label, np.asarray(image.dataobj), moved)

        assert f"{case.label} lies on another grid than" in refused(small, data)

    def test_a_missing_label_is_refused(self, data: Path, case: Case, small: Recipe, refused: Refused) -> None:
        """A missing label is reported before the first step."""
        case.label.unlink()

        assert f"{case.label} was not found" in refused(small, data)

    def test_a_damaged_scan_is_refused(self, data: Path, case: Case, small: Recipe, refused: Refused) -> None:
        """A truncated scan is reported before the first step."""
        scan = case.images[-1]
        scan.write_bytes(scan.read_bytes()[:-20])

        assert f"{scan} cannot be read. The gzip stream is cut short" in refused(small, data)

    def test_labels_have_colours_of_their_own(self) -> None:
        """No two labels share a colour."""
        labels = RECIPES[self.name].service.labels

        assert len({label.color for label in labels}) == len(labels)

    def test_the_population_counts_persons_and_cases(self) -> None:
        """The population counts persons and cases and is marked as held out."""
        population = RECIPES[self.name].population([Case(name, "A", (Path(name),), Path(name)) for name in "ab"])

        assert (population.n_persons, population.n_cases, population.protocol) == (1, 2, "held-out")
