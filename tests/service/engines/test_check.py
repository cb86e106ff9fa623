import pytest
import torch
from torch import nn

from service.bundle.card import Precision
from service.engines.check import check, example_window
from service.errors import EngineDisagrees

CPU = torch.device("cpu")
WINDOW = example_window(2, (8, 12, 10), CPU)


class Shifted(nn.Module):
    """A network that shifts the second of two logits."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return (1, 2, *window)."""
        return window + torch.tensor([0.0, self.shift]).view(1, 2, 1, 1, 1)


def test_the_window_is_always_the_same() -> None:
    """Every load of a bundle compares the same window, with variation in every channel."""
    assert WINDOW.shape == (1, 2, 8, 12, 10)
    assert torch.equal(WINDOW, example_window(2, (8, 12, 10), CPU))
    assert WINDOW.std() > 0.3


def test_an_engine_that_agrees_passes() -> None:
    """Equal logits pass, and so does a difference that bfloat16 explains."""
    check(Shifted(0), Shifted(0), WINDOW, "fp32")
    check(Shifted(0.01), Shifted(0), WINDOW, "bf16")


@pytest.mark.parametrize(("shift", "precision"), [(0.01, "fp32"), (0.2, "bf16"), (float("nan"), "bf16")])
def test_an_engine_that_disagrees_is_refused(shift: float, precision: Precision) -> None:
    """A difference beyond the precision, or NaN, is refused with its size."""
    with pytest.raises(EngineDisagrees, match="on average"):
        check(Shifted(shift), Shifted(0), WINDOW, precision)
