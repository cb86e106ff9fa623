"""Logits -> what is said about each voxel: probabilities, mask and confidence on the scan's own grid."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from service.bundle.schema import ServiceConfig
from service.pipeline.preprocess import Grid, to_scan_grid


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """Mask and confidence of one case.

    Args:
        mask: (D, H, W) uint8, label values of the bundle.
        confidence: (D, H, W) float32 in [1/C, 1], the calibrated probability of the mask's class at each voxel.
    """

    mask: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]


def probabilities(logits: torch.Tensor, grid: Grid, config: ServiceConfig) -> npt.NDArray[np.float32]:
    """Return the calibrated probabilities on the scan's grid, (C, D, H, W) float32, summing to 1 over C.

    Logits are interpolated, not probabilities: interpolated probabilities would blur the confidence at edges.

    Args:
        logits: (C, D, H, W) float16 on the network's grid.
        grid: leads back to the scan's grid.
        config: holds the temperature of each class.
    """
    temperature = torch.tensor(config.temperature).view(-1, 1, 1, 1)
    native = torch.from_numpy(to_scan_grid(logits.float(), grid))
    return (native / temperature).softmax(dim=0).numpy()


def segment(probs: npt.NDArray[np.float32], config: ServiceConfig) -> Segmentation:
    """Return the most probable label and its probability at each voxel; of two equal ones the first listed.

    Args:
        probs: (C, D, H, W) float32.
        config: holds the label value of each class.
    """
    confidence = probs.max(axis=0)
    values = np.array([label.value for label in config.labels], np.uint8)
    return Segmentation(values[probs.argmax(axis=0)], confidence)
