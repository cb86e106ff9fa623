from typing import Any

import pytest
import torch
from torch import nn

from service.engines.transposed_conv import PhasedConvTranspose3d


@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 4, "stride": 2, "padding": 1},
        {"kernel_size": 1, "stride": 2, "output_padding": 1},
        {"kernel_size": (3, 5, 3), "stride": (2, 3, 1), "padding": (1, 1, 1), "output_padding": (1, 0, 0)},
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs_function(sizes: dict[str, Any], bias: bool) -> None:  # noqa: FBT001 - a parameter
    """All voxels agree, also at the edges, for different sizes along all axes."""
    torch.manual_seed(0)
    conv = nn.ConvTranspose3d(3, 2, **sizes, bias=bias)
    window = torch.randn(1, 3, 4, 5, 6)

    assert PhasedConvTranspose3d.fits(conv)
    with torch.inference_mode():
        expected = conv.double()(window.double())
        actual = PhasedConvTranspose3d(conv.float())(window)

    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 2, "groups": 2},
        {"kernel_size": 2, "stride": 3, "dilation": 2, "output_padding": 1},
    ],
)
def test_other_layers_do_not_fit(sizes: dict[str, Any]) -> None:
    """Layers with another output size than input times stride, with groups or with dilation are excluded."""
    assert not PhasedConvTranspose3d.fits(nn.ConvTranspose3d(4, 4, **sizes))
