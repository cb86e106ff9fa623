"""Processes load only the libraries that they need."""

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "monai")


@pytest.mark.parametrize("module", ["service", "service.commands.cli", "service.app", "service.client.http"])
def test_importing_it_loads_neither_torch_nor_monai(module: str) -> None:
    """The command line, the API's process and the client start without the deep-learning libraries."""
    script = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_answers_at_once() -> None:
    """`calibrant --help` takes under half a second of processor time."""
    script = (
        "import os, subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'service', '--help'], check=True, stdout=subprocess.DEVNULL); "
        "times = os.times(); print(times.children_user + times.children_system)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5
    assert time.monotonic() - started < 30
