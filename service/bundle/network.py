"""The allow-list of networks that a bundle may name, and their construction from the bundle's arguments."""

from collections.abc import Callable
from typing import Final

from monai.networks.nets import SegResNet, SegResNetDS, UNet
from torch import nn

from service.bundle.schema import Network
from service.errors import BundleUnsupported

NETWORKS: Final[dict[str, Callable[..., nn.Module]]] = {
    "SegResNet": SegResNet,
    "SegResNetDS": SegResNetDS,
    "UNet": UNet,
}
"""Names that `service.json` may use; a bundle never brings code of its own."""

# Raised by the constructors if the arguments do not fit; any other exception is a bug here.
_BAD_ARGUMENTS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def build_network(declaration: Network) -> nn.Module:
    """Return the network with fresh weights.

    Raises:
        BundleUnsupported: the name is not on the list, or the arguments do not fit.
    """
    if declaration.name not in NETWORKS:
        msg = f"The bundle asks for the network {declaration.name!r}; this version serves {', '.join(NETWORKS)}."
        raise BundleUnsupported(msg)
    try:
        return NETWORKS[declaration.name](**declaration.arguments)
    except _BAD_ARGUMENTS as error:
        msg = f"The arguments of {declaration.name} in service.json do not fit: {error}"
        raise BundleUnsupported(msg) from error
