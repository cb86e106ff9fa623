from collections.abc import Callable

import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from service.engines import torch_bf16
from service.engines.check import example_window
from service.engines.torch_bf16 import AutocastOnGPU, HalvedOnCPU, in_bf16

CPU = torch.device("cpu")
WINDOW = example_window(1, (16, 16, 16), CPU)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "InstanceNorm": lambda: UNet(3, 1, 3, [8, 16], [2], num_res_units=2),
    "GroupNorm": lambda: SegResNet(3, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,)),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_weights_give_nearly_the_same_logits(name: str, memory_format: torch.memory_format) -> None:
    """In both memory formats the logits are float32 and close, but not equal, to those of float32 weights."""
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()

    with torch.inference_mode():
        actual, expected = HalvedOnCPU(network, memory_format)(WINDOW), network(WINDOW)

    assert actual.dtype == torch.float32
    assert not torch.equal(actual, expected)
    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_network_itself_is_unchanged() -> None:
    """Weights are copied, so the float32 network remains for comparison."""
    network = NETWORKS["GroupNorm"]().eval()

    in_bf16(network, WINDOW)

    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("faster", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_the_probe_chooses_the_faster_format(monkeypatch: pytest.MonkeyPatch, faster: torch.memory_format) -> None:
    """The memory format with the shorter time per window is selected."""
    monkeypatch.setattr(torch_bf16, "_seconds", lambda network, _window: 1.0 if network._format == faster else 2.0)

    actual = in_bf16(nn.Conv3d(1, 2, 1), WINDOW)

    assert isinstance(actual, HalvedOnCPU)
    assert actual._format == faster


def test_autocast_returns_float32() -> None:
    """The types that autocast returns on a GPU can be tested on a CPU."""
    network = nn.Conv3d(1, 2, 3, padding=1)

    with torch.inference_mode():
        actual, expected = AutocastOnGPU(network)(WINDOW), network(WINDOW)

    assert actual.dtype == torch.float32
    assert 0 < (actual - expected).abs().max() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_computes_nearly_the_same() -> None:
    """Autocast on the device gives the CPU's logits within the precision of bfloat16."""
    network = NETWORKS["GroupNorm"]().eval()
    with torch.inference_mode():
        expected = network(WINDOW)
        actual = in_bf16(network.cuda(), WINDOW.cuda())(WINDOW.cuda()).cpu()

    assert (actual - expected).abs().max() < 0.05 * expected.abs().max()
