from typing import Any

import pytest

from service.bundle.limits import NETWORK_NAMES, reject_unservable
from service.bundle.network import NETWORKS
from service.bundle.schema import Network, ServiceConfig
from service.errors import BundleUnsupported

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


def test_the_names_are_those_that_can_be_built() -> None:
    """The list of names is read where the networks themselves cannot be: it needs no torch."""
    assert set(NETWORK_NAMES) == set(NETWORKS)


def test_a_usual_declaration_passes(tiny_config: ServiceConfig) -> None:
    """Nothing is raised for the bundle that the tests serve."""
    reject_unservable(tiny_config)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": [1, 1e-300, 1]}, "temperature is 1, 1e-300, 1; expected 0.01 to 100"),
        ({"temperature": [1, 1, 1e9]}, "temperature"),
        ({"patch_size": (8192, 8192, 8192)}, "patch_size is .*; expected"),
        ({"spacing_mm": (1, 1, 1e-9)}, "spacing_mm"),
        ({"overlap": 0.9999}, "overlap"),
        ({"network": Network(name="os.system", arguments={})}, "'os.system'; this version serves SegResNet"),
        ({"network": Network(name="UNet", arguments=UNET | {"channels": [4, 10**9]})}, "number beyond 4096"),
        ({"network": Network(name="UNet", arguments=UNET | {"channels": [4] * 1000})}, "list of more than 64"),
        ({"network": Network(name="UNet", arguments=UNET | {"act": {"a": [10**9]}})}, "number beyond 4096"),
        ({"network": Network(name="UNet", arguments=UNET | {"strides": [64, 64]})}, "strides is 4096"),
    ],
)
def test_f9_what_no_machine_can_serve_is_refused(
    fields: dict[str, Any], words: str, tiny_config: ServiceConfig
) -> None:
    """The message names the field, what was found and what is expected."""
    with pytest.raises(BundleUnsupported, match=words):
        reject_unservable(tiny_config.model_copy(update=fields))
