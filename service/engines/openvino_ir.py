"""Run a network by OpenVINO on the CPU, from its intermediate representation (IR), cached because conversion is slow."""

import copy
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import openvino as ov
import torch
from torch import nn

from service.bundle.card import Precision
from service.engines.groupnorm import PooledGroupNorm
from service.engines.long_axis import with_long_axis_last
from service.engines.transposed_conv import PhasedConvTranspose3d

_HINTS: Final[dict[Precision, str]] = {"fp32": "f32", "bf16": "bf16"}
_MODEL: Final = "model.xml"

_FORM: Final = 3
"""Version of the conversion: raise it when the conversion changes, so that older cached IRs are not used."""


class Compiled(nn.Module):
    """A compiled network with float32 input and output.

    The returned logits share memory with the engine: the next window overwrites them.
    """

    def __init__(self, model: Any, precision: Precision) -> None:  # noqa: ANN401 - openvino.Model, an optional package
        """Compile for as many threads as torch uses.

        Args:
            model: of a fixed window size.
            precision: of the arithmetic; weights are float32 in any case.
        """
        super().__init__()
        compiled = ov.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                # Pinned, every process would compute on the first cores, however many are idle.
                "ENABLE_CPU_PINNING": False,
            },
        )
        self._request = compiled.create_infer_request()
        # Callers read the device from a network's parameters: an empty one says CPU.
        self._device_marker = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, C, *window) float32 of a window (1, channels, *window)."""
        outputs = self._request.infer([window.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0])


def compiled(network: nn.Module, window: torch.Tensor, precision: Precision, cache: Path | None) -> Compiled:
    """Return the compiled network.

    Args:
        network: in evaluation mode, on the CPU.
        window: of the size of all windows.
        precision: of the arithmetic.
        cache: folder for the IR of this network and window size; None for no cache.
    """
    kept = None if cache is None else cache / f"openvino-{ov.__version__.partition('-')[0]}-{_FORM}"
    if kept is not None and (kept / _MODEL).is_file():
        return Compiled(ov.Core().read_model(kept / _MODEL), precision)
    model = converted(network, window)
    if kept is not None:
        with suppress(OSError):  # without a writable cache the network is converted again next time
            _keep(model, kept)
    return Compiled(model, precision)


def converted(network: nn.Module, window: torch.Tensor) -> Any:  # noqa: ANN401 - openvino.Model, an optional package
    """Convert a network to IR for windows of one size."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Not by openvino.convert_model, which sends telemetry.
    with warnings.catch_warnings(action="ignore"):  # tracing always warns; its result is checked afterwards
        decoder = TorchScriptPythonDecoder(rewritten(network, window), example_input=(window,))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({0: ov.PartialShape(list(window.shape))})
    return model


def rewritten(network: nn.Module, window: torch.Tensor) -> nn.Module:
    """Return an equivalent copy of the network for windows of this size, of layers that OpenVINO runs fast."""
    network = with_long_axis_last(copy.deepcopy(network), window)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.GroupNorm):
            network.set_submodule(name, PooledGroupNorm(module))
        elif isinstance(module, nn.ConvTranspose3d) and PhasedConvTranspose3d.fits(module):
            network.set_submodule(name, PhasedConvTranspose3d(module))
    return network


def _keep(model: Any, folder: Path) -> None:  # noqa: ANN401 - openvino.Model, an optional package
    """Store the IR atomically; if two processes store it, the first one's stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as draft:
        ov.save_model(model, Path(draft) / "ir" / _MODEL, compress_to_fp16=False)
        if not folder.exists():
            (Path(draft) / "ir").rename(folder)
