import numpy as np

from service.bundle.card import CaseRecord
from service.bundle.reliability import images_per_cell, reliability_of
from service.calibration.cohort import measure_case
from service.calibration.histogram import ReliabilityHistogram


def record(case: str, person: str, p: list[float], labels: list[int]) -> CaseRecord:
    """Return the record of an image with background and one structure with these probabilities."""
    probs = np.array([[1 - x for x in p], p], np.float32)
    sums = measure_case(case, person, probs, probs.argmax(axis=0).astype(np.uint8), np.array(labels))
    return CaseRecord.of(sums, (1, 1, len(p)), (1.0, 1.0, 1.0))


TWO = [
    record("a", "A", [0.12, 0.12, 0.12, 0.12], [0, 0, 0, 1]),
    record("b", "A", [0.12, 0.12, 0.97, 0.97], [0, 1, 1, 1]),
]
"""Bin 2 has four voxels with frequency 1/4 in the first image and two with 1/2 in the second; bin 19 two with 1."""


def test_voxels_are_pooled_and_images_kept_apart() -> None:
    """The six voxels of bin 2 have a pooled frequency of 1/3; apart, the images have 1/4 and 1/2."""
    actual = reliability_of(TWO, ["structure"], "two images")

    (structure,) = actual.structures
    assert (actual.source, actual.n_cases, actual.n_persons) == ("two images", 2, 1)
    assert structure.count == [0, 0, 6, *[0] * 16, 2]
    assert structure.mean_p[2] == np.float32(0.12)
    assert (structure.frequency[2], structure.frequency[19]) == (1 / 3, 1.0)
    assert structure.frequency[5] is None
    cells = {(k, f): n for k, row in enumerate(structure.images) for f, n in enumerate(row) if n}
    assert cells == {(2, 4): 1, (2, 9): 1, (19, 19): 1}


def test_scores_are_those_of_the_pooled_histogram() -> None:
    """For gaps 1/3 - 0.12 and 0.03, ACE is the mean, MCE the larger, and ECE weights them 6 to 2."""
    (structure,) = reliability_of(TWO, ["structure"], "two images").structures

    gaps = 1 / 3 - 0.12, 0.03
    np.testing.assert_allclose(structure.ace or 0, sum(gaps) / 2, atol=1e-6)
    np.testing.assert_allclose(structure.mce or 0, gaps[0], atol=1e-6)
    np.testing.assert_allclose(structure.ece or 0, (6 * gaps[0] + 2 * gaps[1]) / 8, atol=1e-6)


def test_an_image_without_the_structure_has_no_frequency_of_it() -> None:
    """Its voxels are pooled, but it counts in no cell; a structure that no image has gets no scores."""
    absent = record("c", "B", [0.12, 0.12], [0, 0])

    (structure,) = reliability_of([absent], ["structure"], "one image").structures

    assert structure.count[2] == 2
    assert not np.array(structure.images).any()
    assert (structure.ace, structure.ece, structure.mce) == (None, None, None)


def test_every_filled_bin_of_an_image_counts_in_one_cell() -> None:
    """Summed over frequencies, the cells give the number of images with voxels in a bin."""
    generator = np.random.default_rng(0)
    probs = generator.dirichlet([1, 1, 1], size=(4, 50)).transpose(0, 2, 1).astype(np.float32)
    labels = generator.integers(3, size=(4, 50))
    histograms = [ReliabilityHistogram.from_probabilities(p, y) for p, y in zip(probs, labels, strict=True)]

    cells = images_per_cell(histograms)

    np.testing.assert_array_equal(cells.sum(axis=2), np.sum([h.count > 0 for h in histograms], axis=0))
