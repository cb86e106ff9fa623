import pytest
import torch
from pydantic import JsonValue

from service.bundle.network import NETWORKS, build_network
from service.bundle.schema import Network, ServiceConfig
from service.errors import BundleUnsupported

UNET: dict[str, JsonValue] = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8],
    "strides": [2],
}


def test_a_declared_network_is_built(tiny_config: ServiceConfig) -> None:
    """The declared arguments determine channels and classes."""
    network = build_network(tiny_config.network)

    assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 3, 8, 8, 8)


def test_the_second_network_of_the_list_is_built() -> None:
    """SegResNet takes arguments of its own."""
    arguments: dict[str, JsonValue] = {"spatial_dims": 3, "init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}

    network = build_network(Network(name="SegResNet", arguments=arguments | {"in_channels": 1, "out_channels": 2}))

    assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


@pytest.mark.parametrize("name", ["DynUNet", "unet", "monai.networks.nets.UNet", "os.system", ""])
def test_a_network_off_the_list_is_refused(name: str) -> None:
    """Only the exact names of the list are served: nothing is imported by name."""
    with pytest.raises(BundleUnsupported, match="this version serves SegResNet, SegResNetDS, UNet"):
        build_network(Network(name=name, arguments={}))
    assert list(NETWORKS) == ["SegResNet", "SegResNetDS", "UNet"]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"bogus": 1}, id="an unknown argument"),
        pytest.param({"channels": [4]}, id="a single level"),
        pytest.param({"strides": []}, id="too few strides"),
        pytest.param({"channels": ["4", "8"]}, id="channels as text"),
        pytest.param({"channels": {"a": 4, "b": 8}}, id="channels as an object"),
        pytest.param({"spatial_dims": 4}, id="four axes"),
        pytest.param({"out_channels": -1}, id="a negative number of classes"),
        pytest.param({"norm": "nonsense"}, id="an unknown normalisation"),
        pytest.param({"adn_ordering": 3}, id="an ordering that is no text"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, JsonValue]) -> None:
    """Every error of the constructor becomes BundleUnsupported."""
    with pytest.raises(BundleUnsupported, match=r"arguments of UNet in service\.json do not fit"):
        build_network(Network(name="UNet", arguments=UNET | arguments))


def test_missing_arguments_are_refused() -> None:
    """A declaration without the required arguments is refused."""
    with pytest.raises(BundleUnsupported, match="missing"):
        build_network(Network(name="UNet", arguments={}))
