"""What a bundle's declaration may ask for: a valid one can still ask for more than any machine has, or for nonsense.

Checked when the bundle is read, before anything is made of it. The schema itself is frozen and says nothing of it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from service.bundle.schema import Network, ServiceConfig
from service.errors import BundleUnsupported

NETWORK_NAMES: Final = ("SegResNet", "SegResNetDS", "UNet")
"""Networks that `service.bundle.network` can build."""

TEMPERATURES: Final = (0.01, 100.0)
"""Least and largest temperature; those that are fitted lie between 0.5 and 5."""

SPACINGS_MM: Final = (0.01, 100.0)
"""Least and largest voxel size, also of a locator's grid."""

MAX_OVERLAP: Final = 0.9
"""Largest share of a window that overlaps the next: each voxel then is in a thousand windows."""

MAX_WINDOW_VOXELS: Final = 1 << 24
"""Most voxels of a window, 256 x 256 x 256, and of a part's box."""

MAX_STRIDE: Final = 64
"""Largest product of a network's strides; a locator pads every edge to twice that."""

MAX_ARGUMENT: Final = 4096
"""Largest number in a network's arguments, and their longest list is 64 long."""

_LONGEST_LIST: Final = 64


def reject_unservable(config: ServiceConfig) -> None:
    """Refuse a declaration that no machine can serve.

    Raises:
        BundleUnsupported: which field, what was found and what is expected.
    """
    for fault in _faults(config):
        msg = f"{fault}. Export the bundle again."
        raise BundleUnsupported(msg)


def _faults(config: ServiceConfig) -> Iterator[str]:
    yield from _beyond("temperature", config.temperature, TEMPERATURES)
    yield from _beyond("spacing_mm", config.spacing_mm, SPACINGS_MM)
    yield from _beyond("overlap", [config.overlap], (0, MAX_OVERLAP))
    yield from _beyond("voxels of patch_size", [math.prod(config.patch_size)], (1, MAX_WINDOW_VOXELS))
    yield from _network_faults(config.network)
    if config.locator is not None:
        yield from _beyond("spacing_mm of the locator", [config.locator.spacing_mm], SPACINGS_MM)
        yield from _network_faults(config.locator.network)
        for part in config.locator.parts:
            for edges in (part.search_mm, part.size_mm):
                voxels = math.prod(edges) / math.prod(config.spacing_mm)
                yield from _beyond("voxels of a part", [voxels], (1, MAX_WINDOW_VOXELS))


def _network_faults(network: Network) -> Iterator[str]:
    if network.name not in NETWORK_NAMES:
        yield f"The bundle asks for the network {network.name!r}; this version serves {', '.join(NETWORK_NAMES)}"
    if not all(_is_modest(value) for value in network.arguments.values()):
        yield f"The arguments of {network.name} hold a number beyond {MAX_ARGUMENT} or a list of more than {_LONGEST_LIST}"
    strides = network.arguments.get("strides")
    if isinstance(strides, list):
        factor = math.prod(stride for stride in strides if isinstance(stride, int))
        yield from _beyond("product of a network's strides", [factor], (1, MAX_STRIDE))


def _is_modest(value: object) -> bool:
    if isinstance(value, list | dict):
        inner = value.values() if isinstance(value, dict) else value
        return len(value) <= _LONGEST_LIST and all(map(_is_modest, inner))
    return not isinstance(value, int | float) or abs(value) <= MAX_ARGUMENT


def _beyond(name: str, found: Sequence[float], limits: tuple[float, float]) -> Iterator[str]:
    least, largest = limits
    if not all(least <= value <= largest for value in found):
        yield f"service.json: {name} is {', '.join(f'{value:g}' for value in found)}; expected {least:g} to {largest:g}"
