"""Which of the bundles on a disk a site serves: pinned versions, signed by its own keys, loaded once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from service.bundle.description import BundleDescription

if TYPE_CHECKING:
    from minisign import PublicKey

Proof = Callable[[Iterable[BundleDescription]], dict[Path, str]]
"""Loads bundles and returns why some cannot be, by their root."""


def unproved(_: Iterable[BundleDescription]) -> dict[Path, str]:
    """Load nothing: for commands that load the one bundle that they need."""
    return {}


@dataclass(frozen=True, slots=True)
class Trust:
    """What a site demands of bundles beside those that come with the package.

    Args:
        pins: the only SHA-256 that is served, by name.
        keys: of which one must have signed each bundle; none for unsigned ones.
        proof: loads each bundle before it is served.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    keys: "tuple[PublicKey, ...]" = ()
    proof: Proof = unproved
