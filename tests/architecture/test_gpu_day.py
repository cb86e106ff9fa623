"""`scripts/gpu-day` runs to its end without a GPU, so that it can be relied on for the minutes in which there is one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ROWS = {
    "check": [
        "device",
        "a case in the executor",
        "illegal access (injected)",
        "out of memory once (injected)",
        "kill -9 during a case",
        "shipped UNet, torch-fp32",
        "tests marked gpu",
        "memory ladder",
        "bandwidth",
        "matrix product",
    ],
    "bench": ["device", "CT 96 x 96 x 40", "infer", "a crop, shipped", "loss (1,2,16^3), ours hard", "matrix product"],
    "soak": ["device", "cases", "memory of the process"],
}
"""Beginnings of rows that each mode must print."""


def run(mode: str, *options: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Run a mode of the kit, by this interpreter where there is no .venv."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment |= {"PATH": path, "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    command = [str(ROOT / "scripts" / "gpu-day"), mode, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=out)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    """One sentence, and the exit code of a device that is not there."""
    ended = run("check", out=tmp_path)

    assert ended.returncode == 3
    assert ended.stderr == "There is no CUDA device here: give --device cpu to rehearse check without one.\n"
    assert not ended.stdout


@pytest.mark.parametrize("mode", ROWS)
def test_a_mode_runs_to_its_end(mode: str, tmp_path: Path) -> None:
    """The short form prints each row twice, as it goes and in the table, keeps them in a file, and nothing fails."""
    ended = run(mode, "--short", "--device", "cpu", out=tmp_path)

    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert re.fullmatch(r"\d+ passed, 0 failed, 0 skipped", lines[-1])
    table = lines[len(lines) - lines[::-1].index("") :]
    for row in ROWS[mode]:
        assert any(line[8:].startswith(row) for line in table), row
    kept = (tmp_path / f"gpu-day-{mode}.txt").read_text().splitlines()
    assert kept[-len(table) :] == table


def test_the_wheels_are_locked() -> None:
    """Every wheel has a version and a hash, and none is one of the large ones that the kit does without."""
    text = (ROOT / "scripts" / "gpu_day" / "wheels.txt").read_text()
    entries = re.findall(r"^(\S+)==\S+ ((?:\\\n    --hash=sha256:[0-9a-f]{64} ?)+)", text, re.MULTILINE)
    names = {name for name, _ in entries}

    assert len(entries) == len([line for line in text.splitlines() if "==" in line])
    assert {"monai", "nibabel", "dbos", "pytest", "highdicom"} <= names
    assert not names & {"torch", "numpy", "python-gdcm", "simpleitk", "openvino"}
