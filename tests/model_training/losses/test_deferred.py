from collections.abc import Sequence

import pytest
import torch

from model_training.losses import deferred
from model_training.losses.deferred import Deferred


class Event:
    """Stands for CUDA's: done when it is told."""

    done = False

    def query(self) -> bool:
        """Return whether the device has come this far."""
        return self.done

    def synchronize(self) -> None:
        """Wait until it has."""
        self.done = True


def test_on_a_processor_figures_are_read_at_once() -> None:
    """Nothing is left for later."""
    seen: list[Sequence[float]] = []
    figures = Deferred()
    figures.read(torch.tensor([1.0, 2.0]), seen.append)
    assert seen == [[1.0, 2.0]]


def test_on_a_gpu_figures_are_read_in_order_when_they_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that have not arrived are waited for by `wait` alone."""
    events = [Event(), Event(), Event()]
    remaining = iter(events)
    monkeypatch.setattr(deferred, "asynchronous", lambda _: True)
    monkeypatch.setattr(deferred, "_now", lambda _: next(remaining))
    seen: list[Sequence[float]] = []
    figures = Deferred()

    figures.read(torch.tensor([1.0]), seen.append)
    assert seen == []
    events[0].done = True
    figures.read(torch.tensor([2.0]), seen.append)
    assert seen == [[1.0]]
    figures.read(torch.tensor([3.0]), seen.append)
    figures.wait()
    assert seen == [[1.0], [2.0], [3.0]]


@pytest.mark.gpu
def test_a_gpu_hands_over_its_figures(gpu_device: torch.device) -> None:
    """What the device computed is what the reader gets."""
    seen: list[Sequence[float]] = []
    figures = Deferred()
    figures.read(torch.arange(4.0, device=gpu_device) * 2, seen.append)
    figures.wait()
    assert seen == [[0.0, 2.0, 4.0, 6.0]]
