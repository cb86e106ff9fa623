from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

pytest.importorskip("openvino")

from service.engines import openvino_ir
from service.engines.check import example_window
from service.engines.openvino_ir import compiled, converted, rewritten

WINDOW = example_window(1, (16, 16, 16), torch.device("cpu"))


@pytest.fixture(name="network", scope="module")
def network_() -> nn.Module:
    """Return a small network with fixed weights."""
    torch.manual_seed(0)
    return UNet(3, 1, 3, [8, 16], [2], num_res_units=2).eval()


@pytest.fixture(name="expected", scope="module")
def expected_(network: nn.Module) -> torch.Tensor:
    """Return torch's logits."""
    with torch.inference_mode():
        return network(WINDOW)


def test_float32_agrees_with_torch(network: nn.Module, expected: torch.Tensor) -> None:
    """OpenVINO in float32 gives torch's logits up to the order of summation."""
    actual = compiled(network, WINDOW, "fp32", None)(WINDOW)

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_the_representation_is_cached_and_reused(
    network: nn.Module, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time nothing is converted, and another precision uses the same file."""
    compiled(network, WINDOW, "fp32", tmp_path / "bundle")
    monkeypatch.setattr(openvino_ir, "converted", None)

    actual = [compiled(network, WINDOW, precision, tmp_path / "bundle")(WINDOW) for precision in ("fp32", "bf16")]

    torch.testing.assert_close(actual[0], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(actual[1], expected, rtol=0, atol=0.05 * float(expected.abs().max()))
    (kept,) = (tmp_path / "bundle").iterdir()
    assert sorted(file.name for file in kept.iterdir()) == ["model.bin", "model.xml"]


def test_a_window_need_not_be_contiguous(network: nn.Module) -> None:
    """A view of a larger image gives the same logits as its copy."""
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 20, 18, 17)).astype(np.float32))
    engine = compiled(network, WINDOW, "fp32", None)

    cut = engine(image[..., 2:18, 1:17, 1:]).clone()

    assert torch.equal(cut, engine(image[..., 2:18, 1:17, 1:].clone()))


def test_its_device_is_the_cpu(network: nn.Module) -> None:
    """Code that reads the device from a network's parameters gets the CPU."""
    assert next(compiled(network, WINDOW, "fp32", None).parameters()).device.type == "cpu"


def test_its_threads_may_run_on_any_core(network: nn.Module) -> None:
    """Pinned, the processes of a service with several would all compute on the first core."""
    model = compiled(network, WINDOW, "fp32", None)._request.get_compiled_model()

    assert model.get_property("ENABLE_CPU_PINNING") is False


def test_no_telemetry_is_sent(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion does not start the package's telemetry."""
    telemetry = pytest.importorskip("openvino_telemetry")

    def started(*_: object, **__: object) -> None:
        pytest.fail("telemetry was started")

    monkeypatch.setattr(telemetry.Telemetry, "__init__", started)

    compiled(network, WINDOW, "fp32", None)


def test_a_rewritten_network_computes_the_same() -> None:
    """The logits of a SegResNet agree in float32, and its own layers are not replaced."""
    torch.manual_seed(0)
    network = SegResNet(3, 8, 1, 3, upsample_mode="deconv").eval()
    window = torch.randn(1, 1, 32, 48, 16)
    replaced = (nn.GroupNorm, nn.ConvTranspose3d)

    actual = rewritten(network, window)

    assert not any(isinstance(module, replaced) for module in actual.modules())
    assert any(isinstance(module, replaced) for module in network.modules())
    with torch.inference_mode():
        torch.testing.assert_close(actual(window), network(window), rtol=0, atol=1e-5)


def test_the_representation_has_no_slow_operations() -> None:
    """There is no MVN, which reorders tensors, and no transposed convolution, which would run in float32."""
    network = SegResNet(3, 8, 1, 3, upsample_mode="deconv").eval()

    operations = {node.get_type_name() for node in converted(network, WINDOW).get_ops()}

    assert {"AvgPool", "Convolution"} <= operations
    assert not operations & {"MVN", "GroupNormalization", "ConvolutionBackpropData"}
