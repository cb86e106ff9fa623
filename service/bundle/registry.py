"""The installed bundles by name: those shipped with the package and those of one more folder."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from service.bundle.description import BundleDescription, describe_bundle
from service.bundle.trust import Trust
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
        trust: what is demanded of bundles.
        proved: SHA-256 of the bundles that could be loaded.
    """

    ready: dict[str, BundleDescription] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    folders: tuple[Path, ...] = ()
    unloaded: dict[str, BundleDescription] = field(default_factory=dict)
    trust: Trust = field(default_factory=Trust)
    proved: set[str] = field(default_factory=set)

    @classmethod
    def scan(cls, *folders: Path, unloaded: Collection[str] = (), trust: Trust | None = None) -> "Registry":
        """Return the registry of all bundles directly below the folders.

        Of several bundles with one name the pinned one is served; without a pin the one that comes with the package, or
        none, since a copy must not take the place of what it is a copy of.

        Args:
            folders: each with one subfolder per bundle.
            unloaded: names of models that are out of service.
            trust: what is demanded of bundles; those that come with the package need no signature.

        Raises:
            SettingsError: a folder does not exist.
        """
        registry = cls(folders=folders, trust=trust or Trust())
        if missing := [folder for folder in folders if not folder.is_dir()]:
            msg = f"{missing[0]} is not a folder. Set CALIBRANT_BUNDLE_DIR to a folder that holds bundles."
            raise SettingsError(msg)
        found: dict[str, list[BundleDescription]] = {}
        for root in (child for folder in folders for child in sorted(folder.iterdir()) if _is_bundle(child)):
            try:
                description = describe_bundle(root)
                if registry.trust.keys and root.parent != SHIPPED:
                    from service.bundle.signature import reject_unsigned  # cryptography takes a moment to load

                    reject_unsigned(root, registry.trust.keys)
            except BundleError as error:
                registry.broken[root.name] = error.detail
            else:
                found.setdefault(description.config.name, []).append(description)
        for name, namesakes in found.items():
            registry._choose(name, namesakes)
        for name in unloaded:
            if name in registry.ready:
                registry.unload(name)
        return registry

    def _choose(self, name: str, namesakes: list[BundleDescription]) -> None:
        pin = self.trust.pins.get(name)
        fitting = [one for one in namesakes if pin in (None, one.sha256)]
        if not fitting:
            found = " and ".join(f"{one.root.name} ({one.sha256})" for one in namesakes)
            self.broken[namesakes[0].root.name] = (
                f"CALIBRANT_BUNDLE_PINS asks for {name}@{pin}, and found was {found}. Install that version, or change the pin."
            )
            return
        of_package = [one for one in fitting if one.root.parent == SHIPPED]
        # Two copies of one version are the same model, wherever they lie.
        if len({one.sha256 for one in fitting}) == 1:
            self.ready[name] = (of_package or fitting)[0]
            return
        named = " and ".join(f"{name}@{one.sha256} in {one.root}" for one in fitting)
        for one in fitting:
            if one.root.parent != SHIPPED:
                self.broken[one.root.name] = (
                    f"{len(fitting)} bundles have the name {name}: {named}. Choose one: CALIBRANT_BUNDLE_PINS={name}@SHA256."
                )
        if of_package:
            self.ready[name] = of_package[0]

    def prove(self) -> None:
        """Load each bundle in service that does not come with the package; one that cannot be loaded counts as broken."""
        for root, why in self._unproved(list(self.ready.values())).items():
            self.broken[root.name] = why
            name = next(name for name, description in self.ready.items() if description.root == root)
            del self.ready[name]

    def _unproved(self, bundles: list[BundleDescription]) -> dict[Path, str]:
        """Return why bundles cannot be loaded, by their root; each version is tried once, those of the package never."""
        tried = [one for one in bundles if one.root.parent != SHIPPED and one.sha256 not in self.proved]
        why = self.trust.proof(tried)
        self.proved.update(one.sha256 for one in tried if one.root not in why)
        return why

    def load(self, name: str) -> BundleDescription:
        """Read a bundle from disk, for the first time or again, and put it into service.

        Args:
            name: of the bundle, not of its folder.

        Raises:
            ModelNotFound: none of the folders holds a bundle of this name.
            BundleInvalid: its files on disk have become invalid, it cannot be loaded, or another bundle has its name; the
                registry is unchanged.
        """
        on_disk = Registry.scan(*self.folders, trust=self.trust)
        known = self.ready.get(name) or self.unloaded.get(name)
        description = on_disk.ready.get(name)
        if description is None and known is not None and known.root.name in on_disk.broken:
            raise BundleInvalid(on_disk.broken[known.root.name])
        if description is None:
            raise self._not_found()
        for why in self._unproved([description]).values():
            raise BundleInvalid(why)
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
