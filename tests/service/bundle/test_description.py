import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.bundle.description import describe_bundle
from service.bundle.manifest import sha256_of, write_manifest
from service.bundle.schema import Locator, ServiceConfig
from service.errors import BundleError, BundleIntegrity, BundleInvalid


def test_a_bundle_describes_itself(tiny_bundle: Path, tiny_config: ServiceConfig) -> None:
    """Configuration, card and identity are read without loading weights."""
    description = describe_bundle(tiny_bundle)

    assert description.root == tiny_bundle
    assert description.config == tiny_config
    assert description.card.model == "tiny"
    assert description.identity == f"tiny@{sha256_of(tiny_bundle / 'MANIFEST.json')}"


def test_a_changed_file_is_refused(tiny_bundle: Path) -> None:
    """The manifest is checked before anything is read."""
    (tiny_bundle / "LICENSE").write_text("All rights reserved.\n")

    with pytest.raises(BundleIntegrity, match="first LICENSE"):
        describe_bundle(tiny_bundle)


@pytest.mark.parametrize("name", ["service.json", "calibration.json"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"name": "tiny"', id="cut short"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="no fields"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b"[" * 10_000, id="nested without end"),
    ],
)
def test_broken_json_is_refused(tiny_bundle: Path, name: str, content: bytes) -> None:
    """A file with a valid hash may still break its schema: the message names the file but not its content."""
    (tiny_bundle / name).write_bytes(content)
    write_manifest(tiny_bundle)

    with pytest.raises(BundleInvalid, match=rf"^{name} does not follow its schema\. Export the bundle again\.$"):
        describe_bundle(tiny_bundle)


def test_an_unknown_field_is_refused(tiny_bundle: Path, reseal: Callable[[Path], str]) -> None:
    """A field that this version does not know could change the meaning of others."""
    change(tiny_bundle / "service.json", "postprocess", "largest component")
    reseal(tiny_bundle)

    with pytest.raises(BundleInvalid, match=r"service\.json"):
        describe_bundle(tiny_bundle)


@pytest.mark.parametrize("name", ["service.json", "calibration.json"])
def test_a_bundle_without_a_description_is_refused(tiny_bundle: Path, name: str) -> None:
    """A required file must exist even if the manifest does not list it."""
    (tiny_bundle / name).unlink()
    write_manifest(tiny_bundle)

    with pytest.raises(BundleInvalid, match=name):
        describe_bundle(tiny_bundle)


def test_a_bundle_without_weights_is_refused(tiny_bundle: Path) -> None:
    """Missing weights are a BundleError, too."""
    (tiny_bundle / "models" / "model.safetensors").unlink()
    write_manifest(tiny_bundle)

    with pytest.raises(BundleError):
        describe_bundle(tiny_bundle)


@pytest.mark.parametrize("name", ["weights_sha256", "config_sha256"])
def test_a_card_of_another_model_is_refused(tiny_bundle: Path, name: str) -> None:
    """A card of other weights or another configuration does not apply."""
    change(tiny_bundle / "calibration.json", name, "f" * 64)
    write_manifest(tiny_bundle)

    with pytest.raises(BundleIntegrity, match="measured with other weights or another configuration"):
        describe_bundle(tiny_bundle)


def test_a_locator_without_weights_is_refused(
    tiny_bundle: Path, tiny_locator: Locator, reseal: Callable[[Path], str]
) -> None:
    """The weights of a declared locator must exist."""
    change(tiny_bundle / "service.json", "locator", tiny_locator.model_dump())
    reseal(tiny_bundle)

    with pytest.raises(BundleInvalid, match=r"locator\.safetensors is missing"):
        describe_bundle(tiny_bundle)


def change(path: Path, field: str, value: object) -> None:
    """Set one field of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
