import pytest
import torch
from torch import nn

from service.engines.groupnorm import PooledGroupNorm


@pytest.mark.parametrize(("groups", "channels"), [(1, 6), (3, 6), (6, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_torchs_function(groups: int, channels: int, affine: bool) -> None:  # noqa: FBT001 - a parameter
    """Channels with different means, scales and shifts give the same values as in torch."""
    random = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(groups, channels, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=random)
    window = torch.randn(1, channels, 7, 8, 9, generator=random) + 5 * torch.arange(channels).view(1, -1, 1, 1, 1)

    with torch.inference_mode():
        expected = norm.double()(window.double())
        actual = PooledGroupNorm(norm.float())(window)

    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-6)
