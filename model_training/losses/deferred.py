"""Figures that a GPU computes and that are read when they have arrived, so that the program does not wait for them."""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from .sums import asynchronous


class Deferred:
    """Hands figures of tensors to a function: at once on a CPU, later on a GPU."""

    def __init__(self) -> None:
        """Begin without figures."""
        self._pending: deque[tuple[torch.cuda.Event | None, torch.Tensor, Callable[[Sequence[float]], None]]] = deque()

    def read(self, figures: torch.Tensor, reader: Callable[[Sequence[float]], None]) -> None:
        """Call the reader with the figures, now or at a later call of `read` or `wait`.

        Args:
            figures: (n,) floats.
            reader: may raise.
        """
        if not asynchronous(figures):
            reader(figures.tolist())
            return
        here = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=figures.is_cuda)
        here.copy_(figures, non_blocking=True)
        self._pending.append((_now(figures), here, reader))
        while self._pending and (self._pending[0][0] is None or self._pending[0][0].query()):
            self._next()

    def wait(self) -> None:
        """Wait for all figures and hand them to their readers."""
        while self._pending:
            event = self._pending[0][0]
            if event is not None:
                event.synchronize()
            self._next()

    def _next(self) -> None:
        _, here, reader = self._pending.popleft()
        reader(here.tolist())


def _now(tensor: torch.Tensor) -> torch.cuda.Event | None:
    """Return the event that the device has computed and copied what it was given; None without CUDA."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return event
