"""Makes waiting for a CUDA device an error, for tests of code that must not wait."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Let every operation that waits for a CUDA device raise; on another device, a rehearsal, nothing does."""
    if device.type != "cuda":
        yield
        return
    try:
        with warnings.catch_warnings():  # torch warns once that the mode is a prototype, after it has set it
            warnings.simplefilter("ignore", UserWarning)
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
