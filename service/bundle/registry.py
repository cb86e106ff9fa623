"""The installed bundles by name: those shipped with the package, and those of one further folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.bundle.description import BundleDescription, describe_bundle
from service.errors import BundleError, ModelNotFound, SettingsError

SHIPPED: Final = Path(__file__).parents[1] / "bundles"
"""Folder of the bundles that come with the package."""

DEFAULT_MODEL: Final = "hippocampus-mr"
"""The model that serves a request which names none."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Every bundle found at start, verified once; a broken one is kept with the reason why.

    Args:
        ready: descriptions by name.
        broken: why not, by folder name.
    """

    ready: dict[str, BundleDescription] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    @classmethod
    def scan(cls, *folders: Path) -> "Registry":
        """Return the registry of all bundles directly below the folders; of two with one name the later wins.

        Raises:
            SettingsError: a folder does not exist.
        """
        registry = cls()
        if missing := [folder for folder in folders if not folder.is_dir()]:
            msg = f"{missing[0]} is no folder. Set CALIBRANT_BUNDLE_DIR to a folder that holds bundles."
            raise SettingsError(msg)
        for root in (child for folder in folders for child in sorted(folder.iterdir()) if _is_bundle(child)):
            try:
                description = describe_bundle(root)
            except BundleError as error:
                registry.broken[root.name] = error.detail
            else:
                registry.ready[description.config.name] = description
        return registry

    def find(self, reference: str) -> BundleDescription:
        """Return the bundle of a reference, ``name`` or ``name@sha256``.

        Raises:
            ModelNotFound: no such name, or installed with another sha256.
        """
        name, _, sha256 = reference.partition("@")
        description = self.ready.get(name)
        if description is None or (sha256 and sha256 != description.sha256):
            msg = f"The requested model is not installed. Installed: {', '.join(sorted(self.ready)) or 'none'}."
            raise ModelNotFound(msg)
        return description


def _is_bundle(folder: Path) -> bool:
    # A name with a leading dot is a draft that somebody is writing.
    return folder.is_dir() and not folder.name.startswith(".")
