import pytest
import torch
from torch import nn

from service.engines.check import check, example_window
from service.errors import EngineDisagrees

CPU = torch.device("cpu")
WINDOW = example_window(2, (8, 12, 10), CPU)


class Shifted(nn.Module):
    """Logits of two classes, of which the second is moved."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return (1, 2, *window)."""
        return window + torch.tensor([0.0, self.shift]).view(1, 2, 1, 1, 1)


def test_the_window_is_always_the_same() -> None:
    """Each load of a bundle makes the same comparison, over the whole window and every channel."""
    assert WINDOW.shape == (1, 2, 8, 12, 10)
    assert torch.equal(WINDOW, example_window(2, (8, 12, 10), CPU))
    assert WINDOW.std() > 0.3


def test_an_engine_that_agrees_passes() -> None:
    """Equal logits, and such as differ by as much as bfloat16 explains."""
    check(Shifted(0), Shifted(0), WINDOW, "fp32")
    check(Shifted(0.01), Shifted(0), WINDOW, "bf16")


@pytest.mark.parametrize(("shift", "precision"), [(0.01, "fp32"), (0.2, "bf16"), (float("nan"), "bf16")])
def test_an_engine_that_disagrees_is_refused(shift: float, precision: str) -> None:
    """More than the precision explains, or no number at all, and the message says how much."""
    with pytest.raises(EngineDisagrees, match="on average"):
        check(Shifted(shift), Shifted(0), WINDOW, precision)  # type: ignore[arg-type] - a literal
