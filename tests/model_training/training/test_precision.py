import pytest
import torch
from monai.networks.nets import SegResNetDS, UNet
from torch import nn

from model_training.training.precision import trains_in_bf16


@pytest.mark.parametrize(
    ("patch_size", "expected"), [((16, 16, 16), False), ((24, 24, 24), True), ((48, 48, 16), False)], ids=str
)
def test_a_network_whose_deepest_grid_is_thin_is_trained_in_float32(
    patch_size: tuple[int, int, int], *, expected: bool
) -> None:
    """A network whose deepest grid has fewer than 3 voxels along an axis is trained in float32."""
    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 4, 4, 4), strides=(2, 2, 2))
    assert trains_in_bf16(network, 1, patch_size) is expected


def test_the_network_is_left_as_it_was() -> None:
    """The check leaves mode, hooks, weights and random state unchanged."""
    network = SegResNetDS(spatial_dims=3, init_filters=4, in_channels=2, out_channels=2, blocks_down=(1, 1), dsdepth=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.random.get_rng_state()

    trains_in_bf16(network, 2, (16, 16, 16))

    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_network_without_convolutions_may_use_bfloat16() -> None:
    """A network without convolutions may be trained in bfloat16."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Return the image, scaled."""
            return image * self.factor

    assert trains_in_bf16(Scale(), 1, (2, 2, 2))
