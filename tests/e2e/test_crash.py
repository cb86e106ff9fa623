"""A short run of the crash benchmark; `make crash` runs the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_no_acknowledged_job_is_lost_or_torn_by_kills() -> None:
    """Six kills under load lose, tear and repeat nothing."""
    command = [sys.executable, "benchmarks/crash.py", "--kills", "6"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert '"bad": 0' in found.stdout
