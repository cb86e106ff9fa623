"""Runs one pipeline on one scan and prints seconds per stage, total and peak memory as JSON.

Called by `benchmarks/pipeline.py`, in a fresh process for each pass. Heavy libraries are imported when used, because the decoding
processes import this file again and must not wait for them.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import get_args

STOCK = "stock MONAI"
SAME_FILES = ", mask and confidence"
"""Suffix of the name of our pipeline that writes only the files that stock writes."""

STAGES = {
    "load": "decode",
    "orient": "preprocess",
    "spacing": "preprocess",
    "normalise": "preprocess",
    "invert": "calibrate",
    "softmax": "calibrate",
    "confidence": "calibrate",
    "argmax": "calibrate",
    "save mask": "encode",
    "save confidence": "encode",
}
"""Our stage for each step of stock."""


def run_stock(scan: Path, bundle: Path, out: Path, repeats: int) -> None:
    """Measure the pipeline made of MONAI's parts."""
    from stock import load_network
    from stock import run_stock as run

    from service.bundle.description import describe_bundle

    config = describe_bundle(bundle).config
    network = load_network(bundle, config)

    def once() -> dict[str, float]:
        seconds: dict[str, float] = {}
        for name, taken in run(scan, network, config, out).items():
            stage = STAGES.get(name, name)
            seconds[stage] = seconds.get(stage, 0.0) + taken
        return seconds

    _measure(once, out, repeats)


def run_ours(scan: Path, bundle: Path, out: Path, repeats: int, engine: str, state: Path) -> None:
    """Measure our pipeline with one of its engines."""
    import torch

    from service.engines.ready import ready_bundle
    from service.intake.sandbox import start_sandbox
    from service.pipeline.run import run_case
    from service.schemas import Output

    start_sandbox()
    engine_name = engine.removesuffix(SAME_FILES)
    loaded = ready_bundle(bundle, torch.device("cpu"), engine_name, state)
    outputs = get_args(Output) if engine_name == engine else ("mask", "confidence")

    def once() -> dict[str, float]:
        result = run_case(scan, loaded, out, lambda _stage, _done: None, outputs)
        return {str(stage): taken for stage, taken in result.seconds.items()}

    _measure(once, out, repeats)


def _measure(once, out: Path, repeats: int) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - a script
    """Print one line for each repetition; memory is the peak above the use before the first."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is in use now
    before = _status_mb("VmRSS")
    for _ in range(repeats):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        started, cpu = time.perf_counter(), time.process_time()
        seconds = once()
        total = time.perf_counter() - started
        line = {"seconds": seconds, "total": total, "cpu": time.process_time() - cpu}
        print(json.dumps(line | {"peak_mb": _status_mb("VmHWM") - before}), flush=True)


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Run; arguments are pipeline, scan, bundle, folder for results, repetitions, threads, state directory."""
    name, scan, bundle, out, repeats, threads, state = sys.argv[1:]
    os.environ |= {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    if name == STOCK:
        run_stock(Path(scan), Path(bundle), Path(out), int(repeats))
    else:
        run_ours(Path(scan), Path(bundle), Path(out), int(repeats), name, Path(state))


if __name__ == "__main__":
    main()
