"""Check that an engine computes the network's function: some library versions do not on some processors."""

from typing import Final

import torch
from torch import nn

from service.bundle.card import Precision
from service.engines.machine import device_of, windows_at_a_time
from service.errors import EngineDisagrees

MEAN_TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-5, "bf16": 5e-3, "fp16": 5e-3}
"""Largest accepted mean difference between the probabilities of a window (docs/engines.md)."""

_COARSE: Final = 6
_NOISE: Final = 0.3


def example_window(channels: int, patch_size: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return a reproducible window of smooth shapes and noise, (1, channels, *patch_size) float32."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, channels, *[min(_COARSE, n) for n in patch_size]), generator=generator)
    smooth = nn.functional.interpolate(coarse, size=patch_size, mode="trilinear", align_corners=True)
    return (smooth + _NOISE * torch.randn(smooth.shape, generator=generator)).to(device)


@torch.inference_mode()
def check(network: nn.Module, reference: nn.Module, window: torch.Tensor, precision: Precision) -> None:
    """Compare an engine's probabilities for a window with the reference's.

    Args:
        network: run by the engine; on a GPU it is given as many copies of the window as it computes at a time.
        reference: the same network run by torch in float32.
        window: (1, channels, D, H, W) on any device.
        precision: of the engine.

    Raises:
        EngineDisagrees: the mean difference is larger than the precision explains.
    """
    device = device_of(network)
    copies = windows_at_a_time(device, tuple(window.shape[2:]))
    computed = network(window.to(device).expand(copies, -1, -1, -1, -1)).softmax(dim=1)
    expected = reference(window.to(device_of(reference))).softmax(dim=1).to(device)
    difference = float((computed - expected).abs().mean())
    if not difference <= MEAN_TOLERANCE[precision]:  # also catches NaN, which is what overflow leads to
        msg = f"Its probabilities differ from float32's by {difference:.2g} on average; at most {MEAN_TOLERANCE[precision]:g} was expected. Choose another engine (CALIBRANT_ENGINE)."
        raise EngineDisagrees(msg)
