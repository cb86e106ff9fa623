import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from service.bundle.card import Measurement
from service.bundle.description import describe_bundle
from service.bundle.engine_kind import ENGINE_KINDS, REFERENCE, EngineKind
from service.bundle.overlay import write_overlay
from service.bundle.reader import load_bundle
from service.bundle.schema import ServiceConfig
from service.bundle.statement import Unmeasured
from service.engines import ready
from service.engines.check import MEAN_TOLERANCE, example_window
from service.engines.machine import available, prepare
from service.engines.ready import ready_bundle, run_by
from service.errors import BundleUnsupported, EngineDisagrees
from service.pipeline import run
from service.pipeline.run import covering_measurement

CPU = torch.device("cpu")
BF16 = EngineKind("torch", "bf16")


@pytest.fixture(autouse=True)
def everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the machine has every engine."""
    monkeypatch.setattr(ready, "available", lambda _device: list(ENGINE_KINDS.values()))


@pytest.fixture(name="state")
def state_(tiny_bundle: Path, tmp_path: Path) -> Path:
    """Return a state directory with a bfloat16 measurement of the tiny bundle."""
    description = describe_bundle(tiny_bundle)
    measured = description.card.measurements[0].model_copy(update={"precision": "bf16", "platform": "here"})
    write_overlay(tmp_path / "state", description, measured)
    return tmp_path / "state"


def test_by_default_only_what_the_card_covers_is_used(tiny_bundle: Path) -> None:
    """Even with faster engines the reference is used until the others are measured."""
    bundle = ready_bundle(tiny_bundle, CPU)

    assert bundle.engine_kind == REFERENCE
    assert covering_measurement(bundle) == bundle.description.card.measurements[0]


def test_by_default_the_fastest_that_was_measured_is_used(tiny_bundle: Path, state: Path) -> None:
    """A measurement in the state directory enables its engine and is the one in the statement."""
    bundle = ready_bundle(tiny_bundle, CPU, state=state)

    assert bundle.engine_kind == BF16
    measured = covering_measurement(bundle)
    assert isinstance(measured, Measurement)
    assert measured.platform == "here"


def test_an_engine_that_was_not_measured_is_refused(tiny_bundle: Path, state: Path) -> None:
    """The message says how to measure it."""
    with pytest.raises(BundleUnsupported, match=r"verify-engine BUNDLE .* --engine openvino-fp32"):
        ready_bundle(tiny_bundle, CPU, "openvino-fp32", state)


@pytest.fixture(name="gpu")
def gpu_(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the CPU is a GPU of compute capability 7.5."""
    for module in (ready, run):
        monkeypatch.setattr(module, "device_kind", lambda _device: "cuda-7.5")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("engine", ["auto", "torch-fp32"])
def test_on_a_gpu_without_a_measurement_the_reference_runs(tiny_bundle: Path, state: Path, engine: str) -> None:
    """What was measured on a CPU does not count: the log says so, and the statement will be withdrawn."""
    with structlog.testing.capture_logs() as logs:
        bundle = ready_bundle(tiny_bundle, CPU, engine, state)

    assert bundle.engine_kind == REFERENCE
    assert [line["device"] for line in logs] == ["cuda-7.5"]
    assert covering_measurement(bundle) == Unmeasured("torch", "fp32", "cuda-7.5")


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_any_other_engine_must_be_measured(tiny_bundle: Path, state: Path) -> None:
    """The message says how."""
    with pytest.raises(BundleUnsupported, match=r"bf16 on cuda-7.5: .* --engine torch-bf16 --device cuda\.$"):
        ready_bundle(tiny_bundle, CPU, "torch-bf16", state)


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_the_measurement_of_its_kind_counts(tiny_bundle: Path, state: Path) -> None:
    """A measurement of the same kind of device enables the engine there."""
    description = describe_bundle(tiny_bundle)
    update = {"precision": "fp16", "device": "cuda-7.5", "platform": "the GPU"}
    write_overlay(state, description, description.card.measurements[0].model_copy(update=update))

    bundle = ready_bundle(tiny_bundle, CPU, state=state)

    assert bundle.engine_kind == EngineKind("torch", "fp16")
    assert covering_measurement(bundle) == bundle.measurement
    assert bundle.measurement is not None
    assert bundle.measurement.platform == "the GPU"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_whose_float32_is_wrong_does_not_serve(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference on a GPU is compared with the CPU's; nothing else is left to serve with."""
    monkeypatch.setattr(
        ready, "load_bundle", lambda root, device: replace(load_bundle(root, device), network=Drifting())
    )

    with pytest.raises(EngineDisagrees):
        ready_bundle(tiny_bundle, CPU)


class Drifting(nn.Module):
    """A network whose every copy computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1, 1))

    def __deepcopy__(self, memo: dict[int, object]) -> "Drifting":
        drifted = Drifting()
        drifted.weight.data += torch.tensor([0.0, 0.1, 0.0]).view(1, 3, 1, 1, 1)
        return drifted

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return (N, 3, *window)."""
        return windows * self.weight


def test_an_engine_that_the_machine_lacks_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message lists the available ones."""
    monkeypatch.setattr(ready, "available", lambda _device: [REFERENCE])

    with pytest.raises(BundleUnsupported, match="it has torch-fp32"):
        ready_bundle(tiny_bundle, CPU, "torch-bf16")


def test_an_engine_that_computes_something_else_is_left_out(
    tiny_bundle: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the next engine is used, with a log message; a requested engine is refused."""
    monkeypatch.setattr(ready, "cast", lambda _network, _windows, _precision: nn.Conv3d(1, 3, 1))

    with structlog.testing.capture_logs() as logs:
        bundle = ready_bundle(tiny_bundle, CPU, state=state)

    assert bundle.engine_kind == REFERENCE
    assert [line["engine"] for line in logs] == ["torch-bf16"]
    with pytest.raises(EngineDisagrees):
        ready_bundle(tiny_bundle, CPU, "torch-bf16", state)


def test_the_engine_runs_the_bundles_network(tiny_bundle: Path, state: Path) -> None:
    """In bfloat16 the logits of a window are close to the reference's but not equal."""
    window = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        actual = ready_bundle(tiny_bundle, CPU, "torch-bf16", state).network(window)
        expected = ready_bundle(tiny_bundle, CPU, "torch-fp32", state).network(window)

    assert 0 < (actual - expected).abs().max() < 0.05 * expected.abs().max() + 0.01


def test_openvino_keeps_what_it_prepared(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its representation is cached in the state directory under the bundle's SHA-256."""
    pytest.importorskip("openvino")
    description = describe_bundle(tiny_bundle)
    measured = description.card.measurements[0].model_copy(update={"engine": "openvino"})
    write_overlay(tmp_path / "state", description, measured)

    bundle = ready_bundle(tiny_bundle, CPU, state=tmp_path / "state")

    assert bundle.engine_kind == EngineKind("openvino", "fp32")
    assert list((tmp_path / "state" / "engines" / description.sha256).glob("openvino-*/model.xml"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["UNet", "SegResNet"])
def test_every_engine_of_a_gpu_is_near_float64(name: str, tiny_config: ServiceConfig, gpu_device: torch.device) -> None:
    """Mean |dp| from torch in float64 on the CPU: float32 is not TF32, the others stay within their tolerance."""
    prepare(gpu_device)
    torch.manual_seed(0)
    networks: dict[str, Callable[[], nn.Module]] = {
        "UNet": lambda: UNet(3, 1, 3, [16, 32, 64], [2, 2], num_res_units=2),
        "SegResNet": lambda: SegResNet(3, 16, 1, 3, blocks_down=(1, 2, 2), blocks_up=(1, 1)),
    }
    network = networks[name]().eval()
    config = tiny_config.model_copy(update={"patch_size": (32, 32, 32)})
    window = example_window(1, config.patch_size, CPU)
    with torch.inference_mode():
        expected = copy.deepcopy(network).double()(window.double()).softmax(dim=1)
    network.to(gpu_device)

    for engine_kind in available(gpu_device):
        with torch.inference_mode():
            probs = run_by(engine_kind, network, config)(window.to(gpu_device)).softmax(dim=1).cpu()
        difference = float((probs - expected).abs().mean())
        assert difference < (2e-6 if engine_kind == REFERENCE else MEAN_TOLERANCE[engine_kind.precision]), engine_kind
