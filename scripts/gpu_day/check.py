"""The mode `check`: is everything right on this device?"""

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from gpu_day.engines import compare_engines
from gpu_day.faults import strike_faults
from gpu_day.ladder import climb_down
from gpu_day.machine import bandwidth, described, products
from gpu_day.report import Finding, Report
from service.engines.machine import prepare

ROOT = Path(__file__).parents[2]
TESTS_DEADLINE_S = 300.0

SHORT_TESTS = "model_training/losses"
"""Folder of the tests that the short form runs."""

MARK = "@pytest.mark.gpu"


def check(report: Report, device: torch.device, *, short: bool) -> None:
    """Print what the device is and can, and how far tests, engines and faults come out as they should."""
    prepare(device)
    report.row("device", lambda: described(device))
    tests = _Tests(device, ROOT / "tests" / (SHORT_TESTS if short else ""))
    report.part("faults", lambda: strike_faults(report, device))
    report.part("engines", lambda: compare_engines(report, device, short=short))
    report.row("tests marked gpu", lambda: tests.outcome(report))
    report.part("memory ladder", lambda: climb_down(report, device))
    report.row("bandwidth", lambda: bandwidth(device))
    report.row("matrix product", lambda: products(device))


class _Tests:
    """A run of the tests marked `gpu` in a process of its own, which goes on beside the other rows."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        # Other files may import what no wheel brings.
        files = [str(file) for file in sorted(folder.rglob("test_*.py")) if MARK in file.read_text()]
        self._printed = tempfile.TemporaryFile("w+")  # noqa: SIM115 - outlives this function
        self._started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "--gpu-device", str(device), "-q", "--tb=short"]
        command += ["-p", "no:cacheprovider", "--durations=5", "--timeout=120", *files]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=self._printed, stderr=subprocess.STDOUT, text=True)

    def outcome(self, report: Report) -> Finding:
        """Wait for the tests, add them to the report's numbers, and print what they printed."""
        try:
            self._process.wait(TESTS_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._printed.seek(0)
        text = self._printed.read()
        report.say(text)
        sums = _sums(text)
        failed = sums["failed"] + sums["error"] + sums["errors"]
        report.counted[0] += sums["passed"]
        report.counted[1] += failed
        report.skipped += sums["skipped"]
        seconds = time.monotonic() - self._started
        figures = f"{sums['passed']} passed, {failed} failed, {sums['skipped']} skipped in {seconds:.0f} s"
        return Finding(figures, passed=self._process.returncode == 0 and not sums["skipped"])


def _sums(printed: str) -> Counter[str]:
    """Return the numbers of pytest's last line, such as `3 failed, 20 passed, 1 skipped in 2.1s`."""
    (*_, last) = ["", *re.findall(r"^=* ?(\d+ \w+[^=\n]*?) in [\d.]+s", printed, re.MULTILINE)]
    return Counter({word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)})
