"""Command line of the kit: `scripts/gpu-day check | bench | soak`."""

import argparse
import os
import sys
from pathlib import Path

from gpu_day import plants

NO_DEVICE = 3
"""Exit code: the device that is needed is not there."""


def main() -> int:
    """Run a mode and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/gpu-day", description="Exercise the project on a GPU (docs/gpu.md).")
    parser.add_argument("mode", choices=("check", "bench", "soak"))
    parser.add_argument("--device", default="cuda:0", help="torch device; cpu rehearses the mode without a GPU")
    parser.add_argument("--short", action="store_true", help="the smallest case of each row")
    arguments = parser.parse_args()

    import torch

    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            f"There is no CUDA device here: give --device cpu to rehearse {arguments.mode} without one.",
            file=sys.stderr,
        )
        return NO_DEVICE
    from gpu_day.bench import bench
    from gpu_day.check import check
    from gpu_day.report import Report
    from gpu_day.soak import soak

    out = os.environ.get("OUT")
    report = Report(arguments.mode, Path(out) if out else None)
    {"check": check, "bench": bench, "soak": soak}[arguments.mode](report, device, short=arguments.short)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
if __name__ == "__mp_main__":
    plants.install()
