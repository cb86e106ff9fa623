"""May a network be trained in bfloat16? On a CPU the gradients of some convolutions are wrong there."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

LEAST_VOXELS: Final = 3
"""Along each axis of what a convolution sees, on a CPU, for its gradients to be trusted."""


def trains_in_bf16(network: nn.Module, channels: int, patch_size: Sequence[int]) -> bool:
    """Return whether every convolution of a network sees three voxels or more along each axis, or no CPU computes it.

    On processors with AVX-512 BF16 or AMX, oneDNN 3.12 (torch 2.13) reads memory that nobody wrote when it computes the
    gradient of the weights where an axis has one or two voxels: see pytorch issues 188426 and 169688, which tell of the
    forward pass. Whether it happens depends on what lay there, so that no trial run can tell; this does.

    Args:
        network: on the device that trains it.
        channels: of its input.
        patch_size: (D, H, W) that it is trained on.
    """
    device = next(network.parameters()).device
    if device.type != "cpu":
        return True
    edges: list[int] = []

    def watch(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        edges.extend((*inputs[0].shape[2:], *output.shape[2:]))

    hooks = [
        module.register_forward_hook(watch)
        for module in network.modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
    ]
    training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros((1, channels, *patch_size)))
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return min(edges, default=LEAST_VOXELS) >= LEAST_VOXELS
