"""Measures how close each engine comes to the machine's limit: `python benchmarks/peak.py BUNDLE THREADS` prints JSON.

The limit is the speed of torch's matrix product with the same number of threads, measured alternately with the windows.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROUNDS = 5
SIZES = (1024, 2048)


def measure(bundle: Path) -> dict[str, dict[str, float]]:
    """Return seconds per window, GFLOP/s and the fraction of the limit, by engine."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from service.bundle.reader import load_bundle
    from service.engines.check import example_window
    from service.engines.machine import available
    from service.engines.ready import run_by

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    cpu = torch.device("cpu")
    loaded = load_bundle(bundle, cpu)
    config = loaded.description.config
    window = example_window(len(config.channels), config.patch_size, cpu)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        loaded.network(window)
    gflop = counter.get_total_flops() / 1e9
    engines = {engine_kind: run_by(engine_kind, loaded.network, config) for engine_kind in available(cpu)}
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    limits: dict[str, list[float]] = {precision: [] for precision in types}
    seconds: dict[str, list[float]] = {engine_kind.name: [] for engine_kind in engines}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for engine_kind, engine in engines.items():
                limits[engine_kind.precision] += [_gflops(size, types[engine_kind.precision]) for size in SIZES]
                seconds[engine_kind.name].append(_seconds(partial(engine, window)))
    return {
        engine_kind.name: {
            "seconds": (taken := statistics.median(seconds[engine_kind.name])),
            "gflops": gflop / taken,
            "limit": (limit := max(limits[engine_kind.precision])),
            "fraction": gflop / taken / limit,
        }
        for engine_kind in engines
    }


def _gflops(size: int, dtype: object) -> float:
    import torch

    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))  # type: ignore[call-overload]
    a @ b
    return 2 * size**3 / 1e9 / min(_seconds(lambda: a @ b) for _ in range(3))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": sys.argv[2], "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    print(json.dumps(measure(Path(sys.argv[1]))))
