from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from model_training import recipes
from model_training.cli import app
from model_training.config import Recipe
from model_training.data.case import Case, DataError
from model_training.evaluation import verify as module
from model_training.evaluation.verify import distances, verify
from model_training.export.bundle import export
from service.bundle.card import Interval, Measurement
from service.bundle.description import describe_bundle
from service.bundle.engine_kind import ENGINE_KINDS, REFERENCE, EngineKind
from service.bundle.overlay import measurements_of
from service.engines import ready
from service.engines.devices import Device, claim
from service.engines.machine import device_kind
from service.engines.ready import ready_bundle
from service.errors import BundleUnsupported
from service.pipeline.run import covering_measurement

BF16 = EngineKind("torch", "bf16")
CPU = torch.device("cpu")


def quiet(_: Case) -> None:
    """Ignore the progress."""


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the machine offer torch in both precisions; bfloat16 is emulated if the processor lacks it."""
    for place in (module, ready):
        monkeypatch.setattr(place, "available", lambda _device: [BF16, REFERENCE])


@pytest.fixture(name="bundle")
def bundle_(recipe: Recipe, trained: Path, tiny_msd: Path, tmp_path: Path) -> Path:
    """Return an exported bundle whose card covers the reference only."""
    export(recipe, tiny_msd, trained, tmp_path / "bundle", quiet)
    return tmp_path / "bundle"


def test_what_was_verified_may_be_served(bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """An engine that the card lacks is refused before verification, and afterwards serves with its own measurement."""
    state = tmp_path / "state"
    with pytest.raises(BundleUnsupported, match="verify-engine"):
        ready_bundle(bundle, CPU, "torch-bf16", state)

    measured, moved = verify(bundle, recipe, tiny_msd, BF16, state, quiet)

    served = ready_bundle(bundle, CPU, "torch-bf16", state)
    assert (served.engine_kind, served.measurement) == (BF16, measured)
    assert {case.case for case in measured.cases} == {"c1"}
    assert max(moved.values()) <= 5e-3


def test_an_engine_that_moves_a_figure_is_not_kept(
    bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the tolerance no overlay is written, and the message states the difference."""
    torch.manual_seed(5)
    monkeypatch.setattr(module, "run_by", lambda *_: nn.Conv3d(1, 3, 1))

    with pytest.raises(BundleUnsupported, match="differs from the card's by"):
        verify(bundle, recipe, tiny_msd, BF16, tmp_path / "state", quiet)

    assert set(measurements_of(describe_bundle(bundle), tmp_path / "state")) == {REFERENCE}


def test_a_card_of_other_cases_is_refused(tiny_bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path) -> None:
    """A card measured on other cases than the data set's is refused."""
    with pytest.raises(DataError, match="does not hold the cases"):
        verify(tiny_bundle, recipe, tiny_msd, BF16, tmp_path, quiet)


def test_what_the_machine_lacks_cannot_be_verified(
    bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path
) -> None:
    """The message lists the machine's engines."""
    with pytest.raises(BundleUnsupported, match="it has torch-bf16, torch-fp32"):
        verify(bundle, recipe, tiny_msd, ENGINE_KINDS["openvino-fp32"], tmp_path, quiet)


def test_distances_by_hand(tiny_bundle: Path) -> None:
    """If the DSC is 0.01 lower, its distance is 0.01 and all others are 0."""
    stated = describe_bundle(tiny_bundle).card.measurements[0]
    dsc = stated.scores["dsc"]
    assert dsc.value is not None
    moved = Interval(value=dsc.value - 0.01, low=dsc.low, high=dsc.high)
    measured = stated.model_copy(update={"scores": stated.scores | {"dsc": moved}})

    furthest = {name: gap for name, gap in distances(measured, stated).items() if gap}

    assert furthest == {"foreground dsc": pytest.approx(0.01)}


def test_the_command_verifies(
    bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`calibrant verify-engine` measures, says how far figures moved, and keeps the measurement in the state directory."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    command = ["verify-engine", str(bundle), "--recipe", "tiny", "--data", str(tiny_msd), "--engine", "torch-bf16"]

    without_state = CliRunner().invoke(app, command, env={"CALIBRANT_STATE_DIR": None})
    result = CliRunner().invoke(app, [*command, "--state", str(tmp_path / "state")])

    assert without_state.exit_code == 2
    assert result.exit_code == 0, result.output
    assert "torch-bf16 may be served" in result.output
    assert BF16 in measurements_of(describe_bundle(bundle), tmp_path / "state")


def test_the_command_says_that_nothing_is_left_to_measure(
    bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the card covers all engines of the machine, the command does not end without a word."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    monkeypatch.setattr("service.engines.machine.available", lambda _device: [REFERENCE])
    command = ["verify-engine", str(bundle), "--recipe", "tiny", "--data", str(tiny_msd), "--state", str(tmp_path)]

    result = CliRunner().invoke(app, command)

    assert result.exit_code == 0, result.output
    assert "Nothing to measure" in result.output


@pytest.mark.gpu
def test_a_gpu_is_measured(
    bundle: Path,
    recipe: Recipe,
    tiny_msd: Path,
    tmp_path: Path,
    gpu_device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Measured on the device, the reference serves with a statement of that kind of device."""
    monkeypatch.setattr(module, "available", lambda _device: [REFERENCE])
    monkeypatch.setattr(ready, "available", lambda _device: [REFERENCE])
    device = claim(Device(str(gpu_device)))

    measured, moved = verify(bundle, recipe, tiny_msd, REFERENCE, tmp_path / "state", quiet, device=device)

    served = ready_bundle(bundle, device, state=tmp_path / "state")
    covering = covering_measurement(served)
    assert isinstance(covering, Measurement)
    assert measured.device == covering.device == device_kind(device)
    assert (gpu_device.type == "cuda") == ("float32 as ieee" in measured.platform)
    assert max(moved.values()) <= 1e-3


def test_the_command_has_its_former_name_for_one_version(
    bundle: Path, recipe: Recipe, tiny_msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`calibrant calibrate RECIPE --verify BUNDLE` does what `verify-engine` does."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", recipe)
    command = ["calibrate", "tiny", "--data", str(tiny_msd), "--verify", str(bundle), "--engine", "torch-bf16"]

    result = CliRunner().invoke(app, [*command, "--state", str(tmp_path / "state")])

    assert result.exit_code == 0, result.output
    assert "torch-bf16 may be served" in result.output
