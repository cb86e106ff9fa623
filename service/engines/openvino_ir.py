"""A network run by OpenVINO on the CPU, from its intermediate representation (IR), which is kept: making it takes long."""

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
"""Raised when the conversion changes, so that what an earlier one made is left alone."""


class Compiled(nn.Module):
    """A compiled network that takes and returns float32.

    The logits lie in memory of the engine's own, which the next window overwrites.
    """

    def __init__(self, model: Any, precision: Precision) -> None:  # noqa: ANN401 - openvino.Model, an optional package
        """Compile for as many threads as torch uses.

        Args:
            model: with a fixed window.
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
            },
        )
        self._request = compiled.create_infer_request()
        # Whoever asks a network's parameters where it computes gets an answer.
        self._place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the logits (1, C, *window) float32 of a window (1, channels, *window)."""
        found = self._request.infer([window.contiguous().numpy()], share_inputs=True, share_outputs=True)
        return torch.from_numpy(found[0])


def compiled(network: nn.Module, window: torch.Tensor, precision: Precision, cache: Path | None) -> Compiled:
    """Return the network ready to run.

    Args:
        network: in evaluation mode, on the CPU.
        window: of the size that it will be given.
        precision: of the arithmetic.
        cache: folder for the IR of this very network and window; None keeps it nowhere.
    """
    kept = None if cache is None else cache / f"openvino-{ov.__version__.partition('-')[0]}-{_FORM}"
    if kept is not None and (kept / _MODEL).is_file():
        return Compiled(ov.Core().read_model(kept / _MODEL), precision)
    model = converted(network, window)
    if kept is not None:
        with suppress(OSError):  # where nothing can be written it is made again the next time
            _keep(model, kept)
    return Compiled(model, precision)


def converted(network: nn.Module, window: torch.Tensor) -> Any:  # noqa: ANN401 - openvino.Model, an optional package
    """Return the IR of a network for windows of one size."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # By hand: openvino.convert_model would report to its maker that it was used.
    with warnings.catch_warnings(action="ignore"):  # tracing warns of itself; what it made is checked afterwards
        decoder = TorchScriptPythonDecoder(rewritten(network, window), example_input=(window,))
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({0: ov.PartialShape(list(window.shape))})
    return model


def rewritten(network: nn.Module, window: torch.Tensor) -> nn.Module:
    """Return a copy that is the same function of windows of this one's size, made of what OpenVINO is fast at."""
    network = with_long_axis_last(copy.deepcopy(network), window)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.GroupNorm):
            network.set_submodule(name, PooledGroupNorm(module))
        elif isinstance(module, nn.ConvTranspose3d) and PhasedConvTranspose3d.fits(module):
            network.set_submodule(name, PhasedConvTranspose3d(module))
    return network


def _keep(model: Any, folder: Path) -> None:  # noqa: ANN401 - openvino.Model, an optional package
    """Write the IR so that whoever finds it finds all of it; of two processes the first one's stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as draft:
        ov.save_model(model, Path(draft) / "ir" / _MODEL, compress_to_fp16=False)
        if not folder.exists():
            (Path(draft) / "ir").rename(folder)
