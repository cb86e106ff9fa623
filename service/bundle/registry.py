"""The installed bundles by name: those shipped with the package and those of one more folder."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.bundle.description import BundleDescription, describe_bundle
from service.errors import BundleError, BundleInvalid, ModelNotFound, ModelUnloaded, SettingsError

SHIPPED: Final = Path(__file__).parents[1] / "bundles"
"""Folder of the bundles that come with the package."""

DEFAULT_MODEL: Final = "hippocampus-mr"
"""The model for requests that name none."""


@dataclass(frozen=True, slots=True)
class Registry:
    """All bundles found at start or since, each verified once; a broken one is listed with its reason.

    Args:
        ready: descriptions by name.
        broken: reason by folder name.
        folders: searched for bundles.
        unloaded: descriptions, by name, of the bundles that an administrator has taken out of service.
    """

    ready: dict[str, BundleDescription] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    unloaded: dict[str, BundleDescription] = field(default_factory=dict)

    @classmethod
    def scan(cls, *folders: Path, unloaded: Collection[str] = ()) -> "Registry":
        """Return the registry of all bundles directly below the folders; the later of two with the same name wins.

        Args:
            folders: each with one subfolder per bundle.
            unloaded: names of models that are out of service.

        Raises:
            SettingsError: a folder does not exist.
        """
        registry = cls(folders=folders)
        if missing := [folder for folder in folders if not folder.is_dir()]:
            msg = f"{missing[0]} is not a folder. Set CALIBRANT_BUNDLE_DIR to a folder that holds bundles."
            raise SettingsError(msg)
        for root in (child for folder in folders for child in sorted(folder.iterdir()) if _is_bundle(child)):
            try:
                description = describe_bundle(root)
            except BundleError as error:
                registry.broken[root.name] = error.detail
            else:
                registry.ready[description.config.name] = description
        for name in unloaded:
            if name in registry.ready:
                registry.unload(name)
        return registry

    def load(self, name: str) -> BundleDescription:
        """Read a bundle from disk, for the first time or again, and put it into service.

        Args:
            name: of the bundle, not of its folder.

        Raises:
            ModelNotFound: none of the folders holds a bundle of this name.
            BundleInvalid: its files on disk have become invalid; the registry is unchanged.
        """
        on_disk = Registry.scan(*self.folders)
        known = self.ready.get(name) or self.unloaded.get(name)
        description = on_disk.ready.get(name)
        if description is None and known is not None and known.root.name in on_disk.broken:
            raise BundleInvalid(on_disk.broken[known.root.name])
        if description is None:
            raise self._not_found()
        self.broken.pop(description.root.name, None)
        self.unloaded.pop(name, None)
        self.ready[name] = description
        return description

    def unload(self, name: str) -> BundleDescription:
        """Take a bundle out of service.

        Raises:
            ModelNotFound: no such name.
        """
        description = self.ready.pop(name, None) or self.unloaded.get(name)
        if description is None:
            raise self._not_found()
        self.unloaded[name] = description
        return description

    def find(self, reference: str) -> BundleDescription:
        """Return the bundle of a reference, ``name`` or ``name@sha256``.

        Raises:
            ModelNotFound: no such name, or installed with another sha256.
            ModelUnloaded: an administrator has taken it out of service.
        """
        name, _, sha256 = reference.partition("@")
        if name in self.unloaded:
            msg = "An administrator has taken this model out of service. Choose another, or ask for it to be loaded."
            raise ModelUnloaded(msg)
        description = self.ready.get(name)
        if description is None or (sha256 and sha256 != description.sha256):
            raise self._not_found()
        return description

    def _not_found(self) -> ModelNotFound:
        return ModelNotFound(
            f"The requested model is not installed. Installed: {', '.join(sorted(self.ready)) or 'none'}."
        )


def _is_bundle(folder: Path) -> bool:
    # A leading dot marks a draft that is still being written.
    return folder.is_dir() and not folder.name.startswith(".")
