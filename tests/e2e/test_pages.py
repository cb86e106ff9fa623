"""The shell and Python blocks of README.md and docs/ do what the pages say, against a running service.

Each block is executed, or listed with the reason why not; docs/library.md has a test of its own.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest

from service.commands.demo import template
from tests.dicom_series import series_of_array, zip_of_series

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
"""Pages for readers; the blocks of docs/results/ are benchmarks and what they printed."""

TRAINING = "takes a data set and hours; tests/e2e/test_training.py runs the commands on a tiny one"
NOT_EXECUTED = {
    ("README.md", "make demo"): "tests/service/commands/test_demo.py runs the demo, and `make test` runs this test",
    ("README.md", "calibrant train hippocampus"): TRAINING,
    ("docs/batch.md", "$ calibrant batch scans"): "needs the real scans; tests/e2e/test_batch.py runs it",
    ("docs/batch.md", "#!/bin/sh"): "needs SLURM",
    ("docs/bring-your-own-model.md", "calibrant train NAME"): TRAINING,
    ("docs/bring-your-own-model.md", "calibrant train-locator"): TRAINING,
    ("docs/container.md", "docker build"): "needs Docker",
    ("docs/container.md", "export POSTGRES_PASSWORD"): "needs Docker",
    ("docs/container.md", "sudo scripts/container"): "needs root and an index of packages",
    ("docs/data.md", "calibrant train hippocampus"): TRAINING,
    ("docs/data.md", "from monai.apps import"): "downloads a data set",
    ("docs/engines.md", "calibrant "): "needs the card's cases; tests/model_training/evaluation/test_verify.py",
    ("docs/gpu.md", "pip install 'torch"): "installs; `make setup` and tests/library build and install the packages",
    ("docs/gpu.md", "docker run"): "needs Docker",
    ("docs/gpu.md", "scripts/gpu_day/fetch"): "downloads; tests/architecture/test_gpu_day.py runs the kit",
    ("docs/operations.md", "calibrant audit"): "needs a service's state; tests/service/storage/test_audit.py",
    ("docs/operations.md", "deploy/backup.sh"): "needs a service's state; tests/e2e/test_backup.py",
    ("docs/pacs.md", "printf 'open-sesame"): "needs an Orthanc; tests/e2e/test_pacs.py follows these steps",
    ("docs/pacs.md", 'curl -d \'{"pacs": "clinic"'): "needs an Orthanc; tests/service/api/test_pacs.py",
    ("docs/settings.md", "export CALIBRANT_KEYS_FILE"): "writes below /etc; tests/service/commands/test_cli.py",
    ("docs/verdict.md", "curl --data-binary @reference"): "needs reference masks; tests/service/api/test_reference.py",
    ("docs/viewers.md", "export CALIBRANT_PACS_FILE"): "needs an Orthanc; tests/service/api/monailabel",
}
"""Blocks that are not executed: page and first words, and why."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def reason(self) -> str | None:
        """Why the block is not executed, or None."""
        return next(
            (why for (page, start), why in NOT_EXECUTED.items() if self.page == page and self.text.startswith(start)),
            None,
        )

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, or of a console block without what was printed."""
        if self.language == "console":
            return re.findall(r"^\$ (.*)$", self.text, re.MULTILINE)
        return [line for line in self.text.splitlines() if "calibrant serve" not in line and line.strip()]


def blocks(page: str) -> list[Block]:
    """Return the shell and Python blocks of a page, also those within a list."""
    fenced = re.findall(
        r"^( *)```(sh|console|python)\n(.*?)^ *```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
    return [Block(page, language, text.replace(f"\n{indent}", "\n").strip()) for indent, language, text in fenced]


BLOCKS = [block for page in PAGES if page != "docs/library.md" for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.reason is None and block.language != "python"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files that the pages speak of: scans, a letter, a DICOM series as zip, the example."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "scans").mkdir()
    head = nib.Nifti1Image.from_filename(template())
    crop = head.slicer[53:89, 88:140, 37:77]
    nib.save(crop, desk / "scan.nii.gz")
    shutil.copy(desk / "scan.nii.gz", desk / "scans" / "hippocampus_003.nii.gz")
    (desk / "letter.nii.gz").write_text("This is a letter, not a scan.")
    (desk / "series.zip").write_bytes(
        zip_of_series(series_of_array(np.rint(crop.get_fdata() * 1000).astype(np.int16), crop.affine))
    )
    shutil.copy(ROOT / "docs" / "examples" / "segment_with_httpx.py", desk)
    return desk


def run(command: str, url: str, desk: Path) -> str:
    """Return what a command line of a page prints, with our service and our Python in place of the reader's."""
    line = command.replace("http://127.0.0.1:8000", url)
    line = re.sub(r"^(\.venv/bin/)?calibrant ", f"{shlex.quote(sys.executable)} -m service ", line)
    line = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", line)
    if line.startswith("python") or " segment_with_httpx.py " in line:
        line += f" {url}"
    line = re.sub(r"^curl ", "curl --silent --show-error ", line)
    done = subprocess.run(line, shell=True, cwd=desk, capture_output=True, text=True, check=False)  # noqa: S602 - our own pages
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return done.stdout


def finished(url: str, printed: str) -> str | None:
    """Return the id of the job that a command printed, if it did, once the job has finished."""
    if (match := re.search(r"\{.*\}", printed, re.DOTALL)) is None or "id" not in (job := json.loads(match[0])):
        return None
    events = httpx.get(f"{url}/v1/segmentations/{job['id']}/events", timeout=60)
    assert '"state":"succeeded"' in events.text
    return str(job["id"])


def test_every_block_is_executed_or_excused() -> None:
    """No entry of the list of exceptions is stale, and what is not excused is of a kind that is executed below."""
    excused = [block for block in BLOCKS if block.reason is not None]

    of_entries = [
        sum(block.page == page and block.text.startswith(start) for block in BLOCKS) for page, start in NOT_EXECUTED
    ]
    assert all(of_entries), "an entry has no block"
    assert sum(of_entries) == len(excused), "a block has two entries"
    executed = {(block.page, block.language) for block in BLOCKS if block.reason is None}
    assert {page for page, language in executed if language == "python"} == {"docs/client.md"}
    assert {"README.md", "docs/client.md", "docs/dicom.md", "docs/viewers.md"} == {page for page, _ in executed}


@pytest.mark.skipif(not shutil.which("curl") and not os.environ.get("CI"), reason="curl is not installed")
@pytest.mark.parametrize("page", sorted({block.page for block in SHELL}))
def test_commands_of_a_page_succeed(page: str, url: str, desk: Path) -> None:
    """Copied line by line, each exits with 0; ids in later commands stand for the job of the first."""
    job = ""
    for block in (block for block in SHELL if block.page == page):
        for command in block.commands:
            if not job and re.search(r"/ID/", command):
                job = (
                    finished(
                        url, run("curl --data-binary @scan.nii.gz http://127.0.0.1:8000/v1/segmentations", url, desk)
                    )
                    or ""
                )
            printed = run(re.sub(r"/(ID|[0-9a-f]{32})(?=/|'|$)", f"/{job}", command), url, desk)
            if "letter" in command:
                shown = block.text.partition('{"type"')[2].partition('"detail"')[0]
                assert printed.startswith('{"type"' + shown.strip())
            elif "/v1/segmentations" in command and "-o " not in command:
                job = finished(url, printed) or job


def test_python_blocks_run(url: str, desk: Path) -> None:
    """The block of docs/client.md prints a line per structure, the mask's file and the refusal of the letter."""
    (block,) = [block for block in BLOCKS if block.language == "python" and block.reason is None]
    code = block.text.replace("http://127.0.0.1:8000", url)

    done = subprocess.run([sys.executable, "-c", code], cwd=desk, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    *structures, mask, refusal = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in structures] == ["anterior hippocampus", "posterior hippocampus"]
    assert (mask, refusal) == ("results/hippocampus_003_dseg.nii.gz", "422 /problems/unrecognised-format")
