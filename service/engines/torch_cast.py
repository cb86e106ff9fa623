"""Run a network by torch with weights cast once to bfloat16 or float16."""

import copy
import time
from typing import Final

import torch
from torch import nn

from service.bundle.card import Precision
from service.engines.long_axis import with_long_axis_last
from service.engines.machine import synchronise

DTYPES: Final[dict[Precision, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}

_FORMATS: Final = (torch.contiguous_format, torch.channels_last_3d)
"""Candidate memory formats: with GroupNorm the second is faster, with InstanceNorm the first."""

_ROUNDS: Final = 2


class Cast(nn.Module):
    """A network with weights of half the size, and float32 input and output."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        """Keep a copy of the network.

        Args:
            network: in evaluation mode.
            dtype: of weights and arithmetic.
            memory_format: of weights and windows.
        """
        super().__init__()
        self._network = copy.deepcopy(network).to(dtype)
        self._network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's types lack it
        self._dtype, self._format = dtype, memory_format

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, C, *window) float32 of windows (N, channels, *window)."""
        logits: torch.Tensor = self._network(windows.to(self._dtype, memory_format=self._format))
        return logits.float()


def cast(network: nn.Module, windows: torch.Tensor, precision: Precision) -> nn.Module:
    """Return the network at half precision, in the memory format that is faster in a trial run.

    Args:
        network: in evaluation mode.
        windows: as many as are computed at a time, of the size of all windows, on the network's device.
        precision: bf16 or fp16.
    """
    if windows.device.type == "cpu":
        network = with_long_axis_last(network, windows)
    candidates = [Cast(network, DTYPES[precision], memory_format) for memory_format in _FORMATS]
    return min(candidates, key=lambda candidate: _seconds(candidate, windows))


@torch.inference_mode()
def _seconds(network: nn.Module, windows: torch.Tensor) -> float:
    """Return the shortest time for the windows after a warm-up."""
    times = []
    for _ in range(1 + _ROUNDS):
        synchronise(windows.device)
        started = time.perf_counter()
        network(windows)
        synchronise(windows.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])
