"""The figures of the results pages follow from the committed runs."""

import re
from pathlib import Path

import pytest

from model_training.comparison.files import run_files
from model_training.comparison.tables import compared, load_runs, table

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGES = sorted(folder.name for folder in (RESULTS / "runs").iterdir() if run_files(folder))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_the_tables_of_its_runs(name: str) -> None:
    """Every line of the comparison, recomputed from the runs, is in the page, and the page's picture exists."""
    page = (RESULTS / f"{name}.md").read_text()

    missing = [line for line in table(compared(load_runs(RESULTS / "runs" / name))).splitlines() if line not in page]

    assert not missing
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)
    assert (RESULTS / picture).is_file()


def test_the_committed_runs_are_small() -> None:
    """A clone holds at most 7 MiB of runs; scripts/pack_runs.py packs them."""
    assert sum(path.stat().st_size for path in (RESULTS / "runs").rglob("*") if path.is_file()) <= 7 * 2**20


def test_there_is_a_page_to_check() -> None:
    """The runs of the comparison on the hippocampus are committed."""
    assert "hippocampus" in PAGES
