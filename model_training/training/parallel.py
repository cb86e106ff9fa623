"""The processes that train one network together, as ``torchrun`` starts them; without torchrun, one process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from service.engines.devices import claim, first_device

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run.

    Args:
        rank: number of this process; rank 0 writes files and shows progress.
        size: number of processes.
        device: device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def gathered(self, mine: _T) -> list[_T]:
        """Return the value of every process, in the order of their ranks."""
        if self.size == 1:
            return [mine]
        everyone: list[_T | None] = [None] * self.size
        distributed.all_gather_object(everyone, mine)
        return everyone  # type: ignore[return-value]  # all_gather_object has replaced every None

    def share(self, network: nn.Module) -> nn.Module:
        """Return the network with its gradients averaged over the processes; alone, the network itself."""
        return DistributedDataParallel(network) if self.size > 1 else network

    def wait(self) -> None:
        """Block until every process has called this."""
        if self.size > 1:
            distributed.barrier()


ALONE: Final = Group(rank=0, size=1, device=torch.device("cpu"))
"""One process on the CPU."""


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """Join the group that ``torchrun`` started; without torchrun, yield a group of one.

    Args:
        device: e.g. ``cpu``, ``cuda:1``; with torchrun, ``cuda`` gives each process the device of its local rank.

    Raises:
        DeviceUnavailable: the device is missing.
        SettingsError: `device` names none.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(rank=0, size=1, device=claim(first_device(device)))
        return
    own = claim(first_device(f"cuda:{os.environ['LOCAL_RANK']}" if device.startswith("cuda") else device))
    distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Group(rank, size, own)
    finally:
        distributed.destroy_process_group()
