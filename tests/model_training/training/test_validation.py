from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric, CalibrationReduction

from model_training.data.case import Case, Sample, load_sample
from model_training.data.layouts.msd import read_msd
from model_training.training.parallel import ALONE
from model_training.training.validation import validation_scores
from service.bundle.network import build_network
from service.bundle.schema import Region, ServiceConfig
from service.calibration.histogram import ReliabilityHistogram
from service.calibration.scores import ace


def test_validation_scores_is_the_mean_over_present_structures(tiny_msd: Path, tiny_config: ServiceConfig) -> None:
    """A network that finds structure 1 and misses structure 2 scores 1 and 0; absent structures do not count."""
    sample = load_sample(read_msd(tiny_msd, str)["test"][0], tiny_config)
    only_front = Sample(sample.case, sample.image, torch.where(sample.label == 1, 1, 0).to(torch.uint8))
    network = Knows(sample.label == 1, like=sample.image)

    assert validation_scores(network, [sample], tiny_config, ALONE)["dsc"] == 0.5
    assert validation_scores(network, [only_front], tiny_config, ALONE)["dsc"] == 1.0
    assert network.training


def test_validation_scores_are_those_of_monai_and_of_the_histogram(tiny_config: ServiceConfig) -> None:
    """ACE is the mean over present structures, equal to MONAI's; for a region the probabilities are summed."""
    torch.manual_seed(3)
    network = build_network(tiny_config.network)
    case = Case("a1", "A", (Path("image"),), Path("label"))
    image, label = torch.randn(1, 8, 8, 8), torch.randint(3, (1, 8, 8, 8), dtype=torch.uint8)
    no_back = torch.where(label == 2, 0, label)
    with torch.inference_mode():
        probs = network.eval()(image[None]).softmax(dim=1)

    scores = validation_scores(network, [Sample(case, image, label), Sample(case, image, no_back)], tiny_config, ALONE)

    metric = CalibrationErrorMetric(
        num_bins=20, include_background=False, calibration_reduction=CalibrationReduction.AVERAGE
    )
    metric(
        probs.expand(2, -1, -1, -1, -1),
        torch.nn.functional.one_hot(torch.cat([label, no_back]).long(), 3).movedim(-1, 1),
    )
    (front, back), (front_alone, _) = metric.get_buffer().tolist()
    assert scores["ace"] == pytest.approx((front + back + front_alone) / 3, abs=1e-6)

    config = tiny_config.model_copy(update={"regions": [Region(name="both", labels=[1, 2])]})
    both = validation_scores(network, [Sample(case, image, label)], config, ALONE)
    histogram = ReliabilityHistogram.from_probabilities(probs[0].numpy(), label[0].numpy(), [(1, 2)])
    predicted, reference = probs[0].argmax(dim=0).numpy() > 0, label[0].numpy() > 0
    assert both["ace"] == pytest.approx(ace(histogram)[0], abs=1e-6)
    assert both["dsc"] == pytest.approx(2 * (predicted & reference).sum() / (predicted.sum() + reference.sum()))


def test_without_a_structure_there_is_no_score(tiny_config: ServiceConfig) -> None:
    """Without any structure or image, DSC and ACE are NaN, without a warning."""
    case = Case("a1", "A", (Path("image"),), Path("label"))
    empty = Sample(case, torch.randn(1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.uint8))

    for samples in ([], [empty]):
        scores = validation_scores(build_network(tiny_config.network), samples, tiny_config, ALONE)
        assert np.isnan([scores["dsc"], scores["ace"]]).all()


class Knows(torch.nn.Module):
    """A network that recognises the voxels of a mask by their unique intensities."""

    def __init__(self, mask: torch.Tensor, like: torch.Tensor) -> None:
        """Remember the intensities."""
        super().__init__()
        self.intensities = like[mask]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (1, 3, ...) in favour of class 1 where the intensity is known, otherwise of class 0."""
        known = torch.isin(image[:, 0], self.intensities).float()
        return torch.stack([1 - known, known, torch.zeros_like(known)], dim=1)
