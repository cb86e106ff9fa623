"""Read and verify a bundle without torch: identity, configuration and card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from service.bundle.card import CalibrationCard
from service.bundle.limits import reject_unservable
from service.bundle.manifest import sha256_of, verify_manifest
from service.bundle.schema import Declaration, ServiceConfig
from service.errors import BundleIntegrity, BundleInvalid

WEIGHTS: Final = Path("models/model.safetensors")
LOCATOR: Final = Path("models/locator.safetensors")
CONFIG: Final = Path("service.json")
CARD: Final = Path("calibration.json")

_Declared = TypeVar("_Declared", bound=Declaration)


@dataclass(frozen=True, slots=True, eq=False)
class BundleDescription:
    """The description of a verified bundle.

    Args:
        root: folder of the bundle.
        sha256: of its manifest; `name@sha256` is its identity.
        card_sha256: of its calibration card.
        config: its `service.json`.
        card: its calibration card.
    """

    root: Path
    sha256: str
    card_sha256: str
    config: ServiceConfig
    card: CalibrationCard

    @property
    def identity(self) -> str:
        """``name@sha256`` of the manifest: identifies this model with its weights and card."""
        return f"{self.config.name}@{self.sha256}"


def describe_bundle(root: Path) -> BundleDescription:
    """Return the verified description of the bundle at `root`.

    Raises:
        BundleIntegrity: a file differs from the manifest, or the card belongs to other weights.
        BundleInvalid: a description breaks its schema, or weights are missing.
        BundleUnsupported: it asks for what no machine can serve.
    """
    sha256 = verify_manifest(root)
    config, card = _read(root / CONFIG, ServiceConfig), _read(root / CARD, CalibrationCard)
    reject_unservable(config)
    for weights in (WEIGHTS, LOCATOR) if config.locator else (WEIGHTS,):
        if not (root / weights).is_file():
            msg = f"{weights} is missing. Export the bundle again."
            raise BundleInvalid(msg)
    if (card.weights_sha256, card.config_sha256) != (sha256_of(root / WEIGHTS), sha256_of(root / CONFIG)):
        msg = "The calibration card was measured with other weights or another configuration. Export the bundle again."
        raise BundleIntegrity(msg)
    return BundleDescription(root, sha256, sha256_of(root / CARD), config, card)


def _read(path: Path, model: type[_Declared]) -> _Declared:
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        msg = f"{path.name} does not follow its schema. Export the bundle again."
        raise BundleInvalid(msg) from error
