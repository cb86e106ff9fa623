from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import SegResNet, SegResNetDS, UNet
from torch import nn

from service.engines.long_axis import LongAxisLast, with_long_axis_last

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: UNet(
        3,
        1,
        3,
        [4, 8, 8],
        [(2, 2, 1), (2, 2, 2)],  # type: ignore[list-item]  # MONAI takes a stride for each axis
        kernel_size=(3, 5, 1),
        up_kernel_size=(3, 5, 3),
        num_res_units=2,
    ),
    "SegResNet": lambda: SegResNet(3, 8, 1, 3),
    "SegResNet, deconv": lambda: SegResNet(3, 8, 1, 3, upsample_mode="deconv"),
    "SegResNetDS": lambda: SegResNetDS(3, 8, 1, 3),
    "SegResNetDS, anisotropic": lambda: SegResNetDS(3, 8, 1, 3, resolution=(1, 1, 5)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("shape", "axis"), [((32, 48, 16), 3), ((64, 32, 16), 2)])
def test_a_transposed_network_computes_the_same(name: str, shape: tuple[int, ...], axis: int) -> None:
    """With different sizes along all axes the logits agree, and the network itself is unchanged."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    window = torch.randn(1, 1, *shape)
    with torch.inference_mode():
        expected = network(window)

        transposed = with_long_axis_last(network, window)
        actual = transposed(window)

    assert isinstance(transposed, LongAxisLast)
    assert transposed.axis == axis
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    with torch.inference_mode():
        assert torch.equal(network(window), expected)


@pytest.mark.parametrize("shape", [(96, 96, 96), (40, 56, 40), (128, 128, 64)])
def test_windows_with_long_rows_are_computed_as_they_are(shape: tuple[int, ...]) -> None:
    """If the last axis is long, or no axis is twice as long, transposing gains nothing."""
    network = NETWORKS["SegResNet"]()

    assert with_long_axis_last(network, torch.empty(1, 1, *shape)) is network


def test_layers_that_depend_on_the_order_of_axes_are_not_transposed() -> None:
    """A pixel shuffle depends on the order of the axes."""
    for network in (SegResNet(3, 8, 1, 3, upsample_mode="pixelshuffle"), nn.Sequential(nn.Flatten(2))):
        assert with_long_axis_last(network, torch.empty(1, 1, 64, 64, 16)) is network
