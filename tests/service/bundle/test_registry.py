import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from minisign import KeyPair

from service.bundle import registry as registry_module
from service.bundle.description import BundleDescription, describe_bundle
from service.bundle.manifest import write_manifest
from service.bundle.registry import Registry
from service.bundle.trust import Trust
from service.errors import BundleIntegrity, BundleInvalid, ModelNotFound, ModelUnloaded

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


def test_f9_a_second_bundle_of_a_name_needs_a_pin(
    tiny_bundle: Path, tmp_path: Path, reseal: Reseal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of the package goes on, and the other is refused with both named; a pin chooses either."""
    own = copy_of(tiny_bundle, tmp_path / "own" / "copy", reseal, temperature=[50, 50, 50])
    monkeypatch.setattr(registry_module, "SHIPPED", tiny_bundle.parent)
    folders = (tiny_bundle.parent, own.parent)
    shipped, copied = (describe_bundle(root) for root in (tiny_bundle, own))

    registry = Registry.scan(*folders)

    assert registry.find("tiny").sha256 == shipped.sha256
    assert shipped.identity in registry.broken["copy"]
    assert copied.identity in registry.broken["copy"]
    for one in (shipped, copied):
        pinned = Registry.scan(*folders, trust=Trust({"tiny": one.sha256}))
        assert pinned.find("tiny").sha256 == one.sha256
        assert pinned.broken == {}


def test_f9_of_two_bundles_of_a_site_none_is_served_without_a_pin(tiny_bundle: Path, reseal: Reseal) -> None:
    """Neither has the better right; a pin of neither names what was found, and exact copies are one model."""
    shutil.copytree(tiny_bundle, tiny_bundle.parent / "same")
    assert Registry.scan(tiny_bundle.parent).broken == {}
    copy_of(tiny_bundle, tiny_bundle.parent / "other", reseal, version="9.9.9")

    registry = Registry.scan(tiny_bundle.parent)
    assert registry.ready == {}
    assert set(registry.broken) == {"other", "same", "tiny"}
    assert "CALIBRANT_BUNDLE_PINS=tiny@" in registry.broken["other"]
    absent = Registry.scan(tiny_bundle.parent, trust=Trust({"tiny": "0" * 64}))
    assert absent.ready == {}
    assert "CALIBRANT_BUNDLE_PINS asks for" in next(iter(absent.broken.values()))


def test_f9_an_unsigned_bundle_is_broken_where_keys_are_demanded(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come with the package need no signature: it is trusted as its code is."""
    trust = Trust(keys=(KeyPair.generate().public_key,))

    assert "minisign" in Registry.scan(tiny_bundle.parent, trust=trust).broken["tiny"]
    monkeypatch.setattr(registry_module, "SHIPPED", tiny_bundle.parent)
    assert list(Registry.scan(tiny_bundle.parent, trust=trust).ready) == ["tiny"]


def test_a_version_is_tried_once(tiny_bundle: Path) -> None:
    """Loading what is served already asks for no second proof."""
    asked: list[str] = []

    def proof(bundles: Iterable[BundleDescription]) -> dict[Path, str]:
        asked.extend(bundle.config.name for bundle in bundles)
        return {}

    registry = Registry.scan(tiny_bundle.parent, trust=Trust(proof=proof))
    registry.prove()
    registry.load("tiny")

    assert asked == ["tiny"]


def test_f9_a_bundle_that_cannot_be_loaded_is_not_ready(tiny_bundle: Path) -> None:
    """It is broken with its reason at start, and refused when it is loaded later."""
    trust = Trust(proof=lambda bundles: {bundle.root: "it holds a pickle" for bundle in bundles})
    registry = Registry.scan(tiny_bundle.parent, trust=trust)

    with pytest.raises(BundleInvalid, match="pickle"):
        registry.load("tiny")
    registry.prove()

    assert (registry.ready, registry.broken) == ({}, {"tiny": "it holds a pickle"})


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": [50, 50, 50]},
        {"intensity": [{"step": "window", "low": 0, "high": 1}]},
        {"spacing_mm": [2, 2, 2]},
        {"overlap": 0.75},
        {"patch_size": [16, 16, 16]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_f9_the_card_covers_every_declared_step(tiny_bundle: Path, fields: dict[str, object]) -> None:
    """A manifest that fits a changed declaration does not help: the card names the one that was measured."""
    changed = copy_of(tiny_bundle, tiny_bundle.parent / "changed", write_manifest, **fields)

    with pytest.raises(BundleIntegrity, match="another configuration"):
        describe_bundle(changed)


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
