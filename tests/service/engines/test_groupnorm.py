import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from service.engines.groupnorm import PooledGroupNorm, with_pooled_groupnorm


@pytest.mark.parametrize(("groups", "channels"), [(1, 6), (3, 6), (6, 6)])
@pytest.mark.parametrize("affine", [True, False])
def test_it_is_torchs_function(groups: int, channels: int, affine: bool) -> None:  # noqa: FBT001 - a parameter
    """Channels whose means lie far apart, each with a scale and a shift of its own, become what torch makes of them."""
    random = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(groups, channels, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=random)
    window = torch.randn(1, channels, 7, 8, 9, generator=random) + 5 * torch.arange(channels).view(1, -1, 1, 1, 1)

    with torch.inference_mode():
        expected = norm.double()(window.double())
        found = PooledGroupNorm(norm.float())(window)

    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)


def test_a_network_computes_what_it_did_and_is_left_as_it_was() -> None:
    """A SegResNet's logits stay the same to float32; its own layers are not replaced."""
    torch.manual_seed(0)
    network = SegResNet(3, 8, 1, 3).eval()
    window = torch.randn(1, 1, 16, 24, 16)

    pooled = with_pooled_groupnorm(network)

    assert not any(isinstance(module, nn.GroupNorm) for module in pooled.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in network.modules())
    with torch.inference_mode():
        torch.testing.assert_close(pooled(window), network(window), rtol=0, atol=1e-5)


def test_a_network_without_group_norms_is_itself() -> None:
    """With instance norms there is nothing to be gained."""
    network = UNet(3, 1, 3, [8, 16], [2], norm="instance")

    assert with_pooled_groupnorm(network) is network


def test_openvino_lays_no_tensor_out_anew() -> None:
    """The representation has no MVN, around which each tensor would be laid out anew."""
    pytest.importorskip("openvino")
    from service.engines.openvino_ir import converted

    network = SegResNet(3, 8, 1, 3).eval()

    kinds = {node.get_type_name() for node in converted(network, torch.zeros(1, 1, 16, 16, 16)).get_ops()}

    assert "AvgPool" in kinds
    assert not kinds & {"MVN", "GroupNormalization"}
