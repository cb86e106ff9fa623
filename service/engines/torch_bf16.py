"""Run a network in bfloat16 by torch: with bfloat16 weights on a CPU, by autocast on a GPU."""

import copy
import time
from typing import Final

import torch
from torch import nn

from service.engines.long_axis import with_long_axis_last

_FORMATS: Final = (torch.contiguous_format, torch.channels_last_3d)
"""Candidate memory formats: with GroupNorm the second is faster, with InstanceNorm the first."""

_ROUNDS: Final = 2


class HalvedOnCPU(nn.Module):
    """A network with bfloat16 weights and float32 input and output."""

    def __init__(self, network: nn.Module, memory_format: torch.memory_format) -> None:
        """Keep a copy of the network.

        Args:
            network: in evaluation mode, on the CPU.
            memory_format: of weights and windows.
        """
        super().__init__()
        self._network = copy.deepcopy(network).to(torch.bfloat16)
        self._network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's types lack it
        self._format = memory_format

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, C, *window) float32 of a window (1, channels, *window)."""
        logits: torch.Tensor = self._network(window.to(torch.bfloat16, memory_format=self._format))
        return logits.float()


class AutocastOnGPU(nn.Module):
    """A network whose convolutions run in bfloat16 on any device, with float32 input and output."""

    def __init__(self, network: nn.Module) -> None:
        """Keep the network itself.

        Args:
            network: in evaluation mode, on the GPU.
        """
        super().__init__()
        self._network = network

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, C, *window) float32 of a window (1, channels, *window)."""
        with torch.autocast(window.device.type, torch.bfloat16):
            logits: torch.Tensor = self._network(window)
        return logits.float()


def in_bf16(network: nn.Module, window: torch.Tensor) -> nn.Module:
    """Return the network in bfloat16; on a CPU in the memory format that is faster in a trial run.

    Args:
        network: in evaluation mode.
        window: of the size of all windows, on the network's device.
    """
    if window.device.type != "cpu":
        return AutocastOnGPU(network)
    network = with_long_axis_last(network, window)
    candidates = [HalvedOnCPU(network, memory_format) for memory_format in _FORMATS]
    return min(candidates, key=lambda candidate: _seconds(candidate, window))


@torch.inference_mode()
def _seconds(network: nn.Module, window: torch.Tensor) -> float:
    """Return the shortest time for a window after a warm-up."""
    network(window)
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        network(window)
        times.append(time.perf_counter() - started)
    return min(times)
