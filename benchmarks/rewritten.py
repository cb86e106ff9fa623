"""Measures what rewriting a network saves: milliseconds per window of acdc17-small, as JSON.

Called by `benchmarks/pipeline.py`.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from service.bundle.reader import load_bundle
from service.engines import openvino_ir
from service.engines.check import example_window
from service.engines.long_axis import with_long_axis_last
from service.engines.torch_cast import Cast

ROUNDS = 15
FORMS = ("as it is", "layers replaced", "axes swapped, too")


def forms_of(network: nn.Module, window: torch.Tensor) -> dict[str, dict[str, nn.Module]]:
    """Return the network by engine and form; for torch no layers are replaced."""
    swapped = with_long_axis_last(network, window)
    networks: dict[str, dict[str, nn.Module]] = {
        "torch-fp32": {FORMS[0]: network, FORMS[2]: swapped},
        "torch-bf16": {
            FORMS[0]: Cast(network, torch.bfloat16, torch.contiguous_format),
            FORMS[2]: Cast(swapped, torch.bfloat16, torch.contiguous_format),
        },
    }
    with patch.object(openvino_ir, "rewritten", lambda network, _window: network):
        plain = openvino_ir.converted(network, window)
    with patch.object(openvino_ir, "with_long_axis_last", lambda network, _window: network):
        replaced = openvino_ir.converted(network, window)
    models = dict(zip(FORMS, (plain, replaced, openvino_ir.converted(network, window)), strict=True))
    for precision in ("fp32", "bf16"):
        networks[f"openvino-{precision}"] = {
            form: openvino_ir.Compiled(model, precision) for form, model in models.items()
        }
    return networks


def main() -> None:
    """Print the median of interleaved rounds, on one thread."""
    torch.set_num_threads(1)
    bundle = load_bundle(Path(sys.argv[1]), torch.device("cpu"))
    config = bundle.description.config
    window = example_window(len(config.channels), config.patch_size, torch.device("cpu"))
    forms = forms_of(bundle.network, window)
    taken: dict[tuple[str, str], list[float]] = {}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for engine, networks in forms.items():
                for form, network in networks.items():
                    started = time.perf_counter()
                    network(window)
                    taken.setdefault((engine, form), []).append(1000 * (time.perf_counter() - started))
    medians = {
        engine: {form: statistics.median(taken[engine, form]) for form in networks}
        for engine, networks in forms.items()
    }
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
