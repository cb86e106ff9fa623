"""A short run of `make fuzz`: other mutants than those that docs/results/fuzz.json counts."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from fuzz import added, outcome_of, run  # noqa: E402 - after the path
from fuzz_cost import MOST_CPU_S, MOST_MIB, MOST_UPLOADED, Drawn, content_of  # noqa: E402
from fuzz_files import FORMATS, GENERATION, mutant, valid_files  # noqa: E402

from service.intake.decode import check_scan  # noqa: E402

BEYOND = 10**9
"""Number of a first mutant that no run will count."""


@pytest.mark.parametrize("form", FORMATS)
def test_mutants_are_decoded_or_refused(form: str) -> None:
    """No status of 500, no text of the file in a message, and no decoder that dies or is late."""
    counts = run(form, range(BEYOND, BEYOND + 25), workers=2)

    assert counts["bad"] == []
    assert counts["decoder died or was late"] == 0
    assert counts["decoded"] + counts["refused"] == 25
    assert counts["refused"] > 0


@pytest.mark.parametrize("form", FORMATS)
def test_the_files_that_are_changed_are_valid(form: str, tmp_path: Path) -> None:
    """Otherwise every mutant would be refused for the same reason; each outcome belongs to its number."""
    for content in valid_files(form):
        (tmp_path / "scan").write_bytes(content)
        check_scan(tmp_path / "scan")
    assert [mutant(form, number) for number in range(3)] == [mutant(form, number) for number in range(3)]
    assert mutant(form, 1) != mutant(form, 2)
    assert outcome_of(form, BEYOND, tmp_path).bad == ""


def test_counts_of_several_runs_add_up() -> None:
    """Numbers are sums, faults are listed, and the slowest stays."""
    one = {"mutants": 2, "bad": [], "slowest s": 1.5, "refusals": {"a": 2}}
    other = {"mutants": 3, "bad": ["4: 500"], "slowest s": 0.5, "refusals": {"a": 1, "b": 2}}

    assert added(added({}, one), other) == {
        "mutants": 5,
        "bad": ["4: 500"],
        "slowest s": 1.5,
        "refusals": {"a": 3, "b": 2},
    }


def test_the_committed_counts_hold_what_is_promised() -> None:
    """Nothing bad was found, the counts are of the mutants of today, and no small file that was tried cost too much."""
    results = json.loads((ROOT / "docs" / "results" / "fuzz.json").read_text())

    assert results["generation"] == GENERATION
    assert results["mutants"].keys() == set(FORMATS)
    assert [counts["bad"] for counts in results["mutants"].values()] == [[]] * len(FORMATS)
    for measure, most in (("MiB", MOST_MIB), ("CPU s", MOST_CPU_S)):
        assert results["cost"]["worst"][measure][0] <= most


@pytest.mark.parametrize("kind", ["nifti-gz", "nrrd", "mha", "mgz"])
def test_the_files_of_the_search_are_valid(kind: str, tmp_path: Path) -> None:
    """A search among files that are all refused would find nothing."""
    content = content_of(Drawn(kind, (3, 4, 5), (0, 0.1, 0.2), "float64", 35, 7))

    assert len(content) < MOST_UPLOADED
    (tmp_path / "scan").write_bytes(content)
    check_scan(tmp_path / "scan")
