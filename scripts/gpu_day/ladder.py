"""Falling back step by step when the device's memory runs out: less and less of it is given to the same case."""

import json
import multiprocessing
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from gpu_day.phantoms import make_bundle, save
from gpu_day.report import Finding, Report

CLASSES = 16
EDGE = 192
WINDOW = 64

LEAST_SAME = 0.99
"""Share of voxels whose label stays: a random network of 16 classes decides near ties, and the CPU rounds otherwise."""


def climb_down(report: Report, device: torch.device) -> None:
    """Add a row for each share of the memory: where the case was computed; on a GPU only, for a CPU has no other step."""
    if device.type != "cuda":
        report.row("memory ladder", lambda: Finding("a CPU has no further step: see the injected case"))
        return
    answers: Queue[str] = multiprocessing.get_context("spawn").Queue()
    child = multiprocessing.get_context("spawn").Process(target=_measured, args=(str(device), answers))
    child.start()
    answer = json.loads(answers.get(timeout=180))
    child.join(30)
    if "error" in answer:
        report.row("memory ladder", lambda: Finding(answer["error"], passed=False))
    for step in answer.get("steps", []):
        text = f"on {step['placement']}, {step['seconds']:.1f} s, peak {step['peak']:.0f} MiB, {step['same']:.5f} of voxels as before"
        passed = step["placement"] in step["expected"] and step["same"] > LEAST_SAME
        report.row(f"ladder, {step['name']}", lambda text=text, passed=passed: Finding(text, passed=passed))  # type: ignore[misc]


def _measured(device_name: str, answers: "Queue[str]") -> None:
    try:
        answers.put(json.dumps({"steps": _steps(torch.device(device_name))}))
    except Exception as error:  # noqa: BLE001 - the parent reports it
        answers.put(json.dumps({"error": f"{type(error).__name__}: {str(error)[:300]}"}))


def _steps(device: torch.device) -> list[dict[str, object]]:
    """Run one case with all of the memory, with less than its sums need, and with less than the network needs."""
    import time

    import nibabel as nib

    from service.bundle.reader import load_bundle
    from service.bundle.schema import Label, Network
    from service.engines.machine import prepare
    from service.pipeline.run import run_case
    from service.result.files import MASK

    prepare(device)
    total = torch.cuda.get_device_properties(device).total_memory
    with TemporaryDirectory() as folder:
        from service.bundle.description import describe_bundle
        from service.bundle.registry import DEFAULT_MODEL, SHIPPED

        labels = [Label(value=c, name=f"class {c}", color=(c, c, c)) for c in range(CLASSES)]
        arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": CLASSES, "init_filters": 8}
        config = describe_bundle(SHIPPED / DEFAULT_MODEL).config.model_copy(
            update={
                "name": "ladder",
                "network": Network(name="SegResNet", arguments=arguments),
                "labels": labels,
                "temperature": [1.0] * CLASSES,
                "patch_size": (WINDOW,) * 3,
                "overlap": 0.25,
                "locator": None,
            }
        )
        description = make_bundle(config, None, Path(folder) / "bundle")
        bundle = load_bundle(description.root, device)
        scan = save(np.random.default_rng(0).normal(size=(EDGE,) * 3).astype(np.float32), Path(folder) / "scan.nii.gz")
        steps: list[dict[str, object]] = []
        masks = []

        def step(name: str, share: float, expected: list[str]) -> float:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
            torch.cuda.reset_peak_memory_stats(device)
            out = Path(folder) / name.replace(" ", "-")
            out.mkdir()
            started = time.monotonic()
            result = run_case(scan, bundle, out, lambda _stage, _done: None, ["mask"])
            masks.append(np.asarray(nib.load(out / MASK).dataobj))  # type: ignore[attr-defined]  # nibabel's types lack it
            peak = torch.cuda.max_memory_allocated(device)
            steps.append(
                {
                    "name": name,
                    "placement": result.placement,
                    "expected": expected,
                    "seconds": time.monotonic() - started,
                    "peak": peak / 2**20,
                    "same": float((masks[-1] == masks[0]).mean()),
                }
            )
            return peak / total

        whole = step("all memory", 1.0, ["device"])
        step("half of the peak", 0.5 * whole, ["device", "device, sums on the CPU", "CPU"])
        step("24 MiB", 24 * 2**20 / total, ["CPU"])
        step("all memory again", 1.0, ["device"])
        return steps
