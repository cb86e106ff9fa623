import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.bundle.manifest import write_manifest
from service.bundle.registry import Registry
from service.errors import BundleInvalid, ModelNotFound, ModelUnloaded

Reseal = Callable[[Path], str]


def copy_of(bundle: Path, root: Path, reseal: Reseal, **fields: object) -> Path:
    """Copy a bundle and change its service.json."""
    shutil.copytree(bundle, root)
    declaration = json.loads((root / "service.json").read_bytes()) | fields
    (root / "service.json").write_text(json.dumps(declaration))
    reseal(root)
    return root


def test_bundles_are_found_by_name(tiny_bundle: Path, reseal: Reseal) -> None:
    """Each valid bundle is served under its own name, not that of its folder."""
    other = copy_of(tiny_bundle, tiny_bundle.parent / "folder", reseal, name="other")

    registry = Registry.scan(tiny_bundle.parent)

    assert sorted(registry.ready) == ["other", "tiny"]
    assert registry.broken == {}
    assert registry.find("other").root == other


def test_a_reference_may_pin_the_identity(tiny_bundle: Path) -> None:
    """`name@sha256` finds exactly this version of a model."""
    registry = Registry.scan(tiny_bundle.parent)
    identity = registry.find("tiny").identity

    assert registry.find(identity).identity == identity
    with pytest.raises(ModelNotFound):
        registry.find(f"tiny@{'0' * 64}")


def test_an_unknown_model_is_refused_with_those_installed(tiny_bundle: Path) -> None:
    """The message lists the installed models and does not repeat the request."""
    with pytest.raises(ModelNotFound, match=r"^The requested model is not installed\. Installed: tiny\.$"):
        Registry.scan(tiny_bundle.parent).find("<script>")


def test_an_empty_registry_says_so(tmp_path: Path) -> None:
    """Without bundles the message says "none"."""
    with pytest.raises(ModelNotFound, match=r"Installed: none\.$"):
        Registry.scan(tmp_path).find("tiny")


def test_a_broken_bundle_is_kept_with_its_reason(tiny_bundle: Path, reseal: Reseal) -> None:
    """A broken bundle does not affect the others, and its reason is kept."""
    broken = copy_of(tiny_bundle, tiny_bundle.parent / "broken", reseal, name="other")
    (broken / "LICENSE").unlink()

    registry = Registry.scan(tiny_bundle.parent)

    assert list(registry.ready) == ["tiny"]
    assert list(registry.broken) == ["broken"]
    assert "first LICENSE" in registry.broken["broken"]


@pytest.mark.parametrize("content", ["{}", '{"files": []}'])
def test_a_broken_manifest_does_not_stop_the_service(tiny_bundle: Path, reseal: Reseal, content: str) -> None:
    """The other bundles are served."""
    broken = copy_of(tiny_bundle, tiny_bundle.parent / "broken", reseal)
    (broken / "MANIFEST.json").write_text(content)

    registry = Registry.scan(tiny_bundle.parent)

    assert (list(registry.ready), list(registry.broken)) == (["tiny"], ["broken"])


def test_missing_weights_do_not_stop_the_service(tiny_bundle: Path, reseal: Reseal) -> None:
    """A bundle without weights counts as broken."""
    broken = copy_of(tiny_bundle, tiny_bundle.parent / "broken", reseal)
    (broken / "models" / "model.safetensors").unlink()
    write_manifest(broken)

    registry = Registry.scan(tiny_bundle.parent)

    assert (list(registry.ready), list(registry.broken)) == (["tiny"], ["broken"])


def test_the_later_folder_wins(tiny_bundle: Path, tmp_path: Path, reseal: Reseal) -> None:
    """A bundle in the operator's folder replaces the shipped one of the same name."""
    own = copy_of(tiny_bundle, tmp_path / "own" / "tiny", reseal, version="9.9.9")

    assert Registry.scan(tiny_bundle.parent, own.parent).find("tiny").config.version == "9.9.9"
    assert Registry.scan(own.parent, tiny_bundle.parent).find("tiny").config.version == "0.0.1"


def test_files_beside_the_bundles_are_ignored(tiny_bundle: Path) -> None:
    """A README among the bundles is not a broken bundle."""
    (tiny_bundle.parent / "README.md").write_text("Bundles.\n")

    assert Registry.scan(tiny_bundle.parent).broken == {}


def test_an_unloaded_bundle_is_not_served_until_it_is_loaded(tiny_bundle: Path) -> None:
    """Its name gives ModelUnloaded, not ModelNotFound; unloading twice changes nothing."""
    registry = Registry.scan(tiny_bundle.parent)

    assert registry.unload("tiny").identity == registry.unload("tiny").identity

    with pytest.raises(ModelUnloaded, match="out of service"):
        registry.find("tiny")
    assert registry.load("tiny").identity == registry.find("tiny").identity
    assert registry.unloaded == {}


def test_a_registry_can_begin_with_models_out_of_service(tiny_bundle: Path) -> None:
    """A name that no longer exists on disk is ignored."""
    registry = Registry.scan(tiny_bundle.parent, unloaded=["tiny", "gone"])

    assert (list(registry.ready), list(registry.unloaded)) == ([], ["tiny"])


def test_loading_finds_what_came_since(tiny_bundle: Path, reseal: Reseal) -> None:
    """A new bundle, a new version and one that was mended are served without a restart."""
    draft = copy_of(tiny_bundle, tiny_bundle.parent / "draft", reseal, name="new")
    (draft / "LICENSE").rename(draft.parent / "LICENSE")
    registry = Registry.scan(tiny_bundle.parent)
    earlier = registry.find("tiny").identity

    (draft.parent / "LICENSE").rename(draft / "LICENSE")
    declaration = json.loads((tiny_bundle / "service.json").read_bytes()) | {"version": "0.0.2"}
    (tiny_bundle / "service.json").write_text(json.dumps(declaration))
    reseal(tiny_bundle)

    assert registry.load("new").root == draft
    assert registry.broken == {}
    assert registry.find("tiny").identity == earlier
    assert registry.load("tiny").config.version == registry.find("tiny").config.version == "0.0.2"
    with pytest.raises(ModelNotFound):
        registry.find(earlier)


def test_loading_an_invalid_bundle_changes_nothing(tiny_bundle: Path) -> None:
    """The version in service stays, and the error says what is wrong with the new one."""
    registry = Registry.scan(tiny_bundle.parent)
    (tiny_bundle / "LICENSE").unlink()

    with pytest.raises(BundleInvalid, match="LICENSE"):
        registry.load("tiny")

    assert registry.find("tiny").config.version == "0.0.1"
    for name in ("gone", "../bundles/tiny"):
        with pytest.raises(ModelNotFound):
            registry.load(name)
        with pytest.raises(ModelNotFound):
            registry.unload(name)
