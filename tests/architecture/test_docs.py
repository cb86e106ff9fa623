"""The documents agree with the code."""

import re
import sys
from pathlib import Path

from model_training.evaluation import evaluate, verify
from service import __version__
from service.engines import check
from service.settings import Settings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import write_reference  # noqa: E402 - a script, not a package
import write_schemas  # noqa: E402


def test_every_setting_is_documented() -> None:
    """docs/settings.md lists every setting, and no other."""
    documented = set(re.findall(r"`CALIBRANT_(\w+)`", (ROOT / "docs" / "settings.md").read_text()))
    assert documented == {name.upper() for name in Settings.model_fields}


def test_the_reference_is_that_of_the_code() -> None:
    """docs/reference.md is what scripts/write_reference.py writes from the routes, commands and errors."""
    assert write_reference.TARGET.read_text() == write_reference.page()


def test_the_tolerances_of_engines_are_those_that_are_applied() -> None:
    """docs/engines.md states, for float32 and bfloat16, the numbers that check, verify and evaluate compare with."""
    page = (ROOT / "docs" / "engines.md").read_text()
    rows = [line.split("|")[2:4] for line in page.partition("## Tolerances")[2].splitlines() if line.startswith("| ")]
    stated = [tuple(float(cell) for cell in row) for row in rows[1:]]

    applied = [check.MEAN_TOLERANCE, verify.TOLERANCE, evaluate.TOLERANCE]
    assert stated == [(tolerance["fp32"], tolerance["bf16"]) for tolerance in applied]


def test_committed_schemas_are_those_of_the_models() -> None:
    """The frozen JSON schemas are those of the pydantic models; scripts/write_schemas.py writes them."""
    for name in write_schemas.SCHEMAS:
        assert (write_schemas.FOLDER / name).read_text() == write_schemas.schema_of(name)


def test_citation_and_changelog_name_the_version() -> None:
    """CITATION.cff cites the version of the package, and CHANGELOG.md describes it."""
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(
        rf"^## {re.escape(__version__)} - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_readme_fits_its_limit() -> None:
    """README.md has at most 120 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_links_between_documents_lead_somewhere() -> None:
    """Every relative link in a document leads to an existing file."""
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.relative_to(ROOT)} links to {target}"


def test_paths_in_documents_exist() -> None:
    """Every path below one of our folders that a document names in code font exists."""
    folders = "service|model_training|library|tests|benchmarks|scripts|docs|deploy"
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", document.read_text()):
            assert (ROOT / path).exists(), f"{document.relative_to(ROOT)} names {path}"
