"""Whether a network can be trained in bfloat16: on a CPU the gradients of some convolutions are wrong."""

from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

LEAST_VOXELS: Final = 3
"""Voxels along each axis that a convolution's input and output need on a CPU for its gradients to be right."""


def trains_in_bf16(network: nn.Module, channels: int, patch_size: Sequence[int]) -> bool:
    """Return whether a network may be trained in bfloat16: always on a GPU, on a CPU if no convolution is too thin.

    On processors with AVX-512 BF16 or AMX, oneDNN 3.12 (torch 2.13) reads uninitialised memory when it computes the
    gradient of the weights for an axis of one or two voxels; pytorch issues 188426 and 169688 describe the forward pass.
    Whether gradients come out wrong depends on the contents of that memory, so a trial run cannot tell. This check can: it
    requires three voxels or more along each axis of every convolution.

    Args:
        network: on the device that will train it.
        channels: number of its input channels.
        patch_size: (D, H, W) of the training patches.
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
