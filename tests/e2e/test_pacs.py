"""A series goes through a real Orthanc and comes back as a segmentation that lies where `calibrant predict` puts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from orthanc import is_installed  # noqa: E402 - a script's neighbour, not a package


@pytest.mark.pacs
@pytest.mark.timeout(900)
def test_the_chain_brings_back_every_voxel(hippocampus: Path) -> None:
    """storescu, Orthanc, its changes, job, STOW-RS, dicomweb-client: straight and oblique, and no name in the log."""
    if not is_installed():
        msg = "Orthanc is absent: apt-get install orthanc orthanc-dicomweb dcmtk"
        pytest.fail(msg) if os.environ.get("CI") else pytest.skip(msg)
    command = [sys.executable, "benchmarks/pacs_chain.py", "--data", str(hippocampus.parent)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(", 0 differ") == 2
    assert "canaries in the log of the service: 0" in found.stdout
