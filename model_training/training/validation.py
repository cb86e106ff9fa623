"""Quick scores of a network in training on whole validation images; the card is measured by `evaluation`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from model_training.data.case import Sample
from model_training.training.parallel import Group
from service.bundle.schema import ServiceConfig
from service.calibration.scores import ace
from service.pipeline.infer import sliding_window_logits
from service.pipeline.predict import reliability_histogram


def validation_scores(
    network: nn.Module, samples: Sequence[Sample], config: ServiceConfig, group: Group
) -> dict[str, float]:
    """Return mean foreground ``dsc`` and ``ace`` over the structures of all images, on the network's grid.

    The mean is over the structures that the images hold; NaN if there are none. The processes share the images.

    Args:
        network: put into evaluation mode, and back into training mode afterwards.
        samples: validation images.
        config: declares windows and structures.
        group: the processes of the run.
    """
    network.eval()
    mine = [
        score
        for sample in samples[group.rank :: group.size]
        for score in _structure_scores(network, sample, config, group.device)
    ]
    network.train()
    scores = np.array([score for share in group.gathered(mine) for score in share]).reshape(-1, 2)
    dsc, gap = scores.mean(axis=0) if len(scores) else (float("nan"), float("nan"))
    return {"dsc": float(dsc), "ace": float(gap)}


def _structure_scores(
    network: nn.Module, sample: Sample, config: ServiceConfig, device: torch.device
) -> list[tuple[float, float]]:
    """Return DSC and ACE of each structure that the image holds."""
    probs = sliding_window_logits(network, sample.image.to(device), config).softmax(dim=0)
    labels = sample.label[0].to(device)
    rows = [(0,), *(structure.channels for structure in config.structures)]
    gaps = ace(reliability_histogram(probs, labels, rows))
    mask, scores = probs.argmax(dim=0), []
    for channels, gap in zip(rows[1:], gaps[1:], strict=True):
        of_structure = torch.tensor(channels, device=device)
        predicted, reference = torch.isin(mask, of_structure), torch.isin(labels, of_structure)
        if reference.any():
            dsc = 2 * float((predicted & reference).sum()) / float(predicted.sum() + reference.sum())
            scores.append((dsc, float(gap)))
    return scores
