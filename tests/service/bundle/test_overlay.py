from pathlib import Path

import pytest

from service.bundle.card import Measurement
from service.bundle.description import describe_bundle
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.overlay import measurements_of, write_overlay
from service.errors import BundleInvalid

BF16 = EngineKind("torch", "bf16")


@pytest.fixture(name="measured")
def measured_(tiny_bundle: Path) -> Measurement:
    """Return the tiny card's measurement as if it were of bfloat16."""
    card = describe_bundle(tiny_bundle).card
    return card.measurements[0].model_copy(update={"precision": "bf16"})


def test_an_overlay_adds_to_the_card(tiny_bundle: Path, measured: Measurement, tmp_path: Path) -> None:
    """A stored measurement is returned together with those of the card."""
    bundle = describe_bundle(tiny_bundle)

    write_overlay(tmp_path, bundle, measured)

    assert measurements_of(bundle, tmp_path) == {REFERENCE: bundle.card.measurements[0], BF16: measured}
    assert set(measurements_of(bundle, None)) == {REFERENCE}


def test_an_overlay_never_replaces_the_card(tiny_bundle: Path, tmp_path: Path) -> None:
    """If the card covers an engine kind, the card's own measurement is used."""
    bundle = describe_bundle(tiny_bundle)
    stated = bundle.card.measurements[0]

    write_overlay(tmp_path, bundle, stated.model_copy(update={"platform": "elsewhere"}))

    assert measurements_of(bundle, tmp_path)[REFERENCE].platform == stated.platform


def test_each_kind_of_device_has_its_own_measurement(tiny_bundle: Path, measured: Measurement, tmp_path: Path) -> None:
    """Neither the card's measurements nor a CPU's overlay are those of a GPU."""
    bundle = describe_bundle(tiny_bundle)
    of_gpu = measured.model_copy(update={"device": "cuda-8.6"})

    files = [write_overlay(tmp_path, bundle, each) for each in (measured, of_gpu)]

    assert [file.name for file in files] == ["torch-bf16.json", "torch-bf16-cuda-8.6.json"]
    assert measurements_of(bundle, tmp_path, "cuda-8.6") == {BF16: of_gpu}
    assert measurements_of(bundle, tmp_path, "cuda-9.0") == {}
    assert measurements_of(bundle, tmp_path)[BF16] == measured


def test_an_overlay_of_an_earlier_version_is_of_a_cpu(tiny_bundle: Path, measured: Measurement, tmp_path: Path) -> None:
    """Without a device it was measured on a CPU, and one of a CPU is written as earlier versions wrote it."""
    bundle = describe_bundle(tiny_bundle)

    file = write_overlay(tmp_path, bundle, measured)

    assert "device" not in file.read_text()
    assert measurements_of(bundle, tmp_path)[BF16].device == "cpu"


def test_an_overlay_in_the_place_of_another_device_is_refused(
    tiny_bundle: Path, measured: Measurement, tmp_path: Path
) -> None:
    """A copied file does not make a CPU's measurement one of a GPU."""
    bundle = describe_bundle(tiny_bundle)
    file = write_overlay(tmp_path, bundle, measured)
    file.rename(file.with_name("torch-bf16-cuda-9.0.json"))

    with pytest.raises(BundleInvalid, match="another bundle, engine or device"):
        measurements_of(bundle, tmp_path, "cuda-9.0")


@pytest.mark.parametrize(
    ("old", "new"), [('"bundle":"tiny@', '"bundle":"other@'), ('"precision":"bf16"', '"precision":"fp16"'), ("{", "")]
)
def test_a_changed_overlay_is_refused(
    tiny_bundle: Path, measured: Measurement, tmp_path: Path, old: str, new: str
) -> None:
    """A damaged file, or one of another bundle or engine kind, is refused by name."""
    bundle = describe_bundle(tiny_bundle)
    file = write_overlay(tmp_path, bundle, measured)
    file.write_text(file.read_text().replace(old, new, 1))

    with pytest.raises(BundleInvalid, match=r"torch-bf16\.json"):
        measurements_of(bundle, tmp_path)
