import csv
from pathlib import Path

import pytest

from model_training.results import COLUMNS, write_results
from service.bundle.card import Measurement
from service.bundle.description import describe_bundle
from service.schemas import Reliability


@pytest.fixture
def measurement(tiny_bundle: Path) -> Measurement:
    """Return the tiny bundle's measurement: two cases of 100 voxels, 20 of each structure, all right with p = 0.75."""
    return describe_bundle(tiny_bundle).card.measurements[0]


def test_files_are_written_and_named(measurement: Measurement, tmp_path: Path) -> None:
    """A table, a document and two pictures, none of them empty."""
    files = write_results(tmp_path / "out", measurement, ["front", "back"], "two boxes, all")

    assert [path.name for path in files] == ["cases.csv", "reliability.json", "reliability.png", "reliability.svg"]
    assert all(path.stat().st_size > 100 for path in files)
    reliability = Reliability.model_validate_json(files[1].read_bytes())
    assert (reliability.source, reliability.n_cases) == ("two boxes, all", 2)


def test_the_table_has_a_row_per_case_and_structure(measurement: Measurement, tmp_path: Path) -> None:
    """DSC 1; gaps 0.25 and 0.125 in two bins of 20 and 80 voxels, so ACE 0.1875, ECE 0.15, MCE 0.25."""
    (table, *_) = write_results(tmp_path, measurement, ["front", "back"], "two boxes")

    with table.open() as file:
        rows = list(csv.DictReader(file))

    assert tuple(rows[0]) == COLUMNS
    assert [(row["case"], row["structure"]) for row in rows] == [
        ("case of A", "front"),
        ("case of A", "back"),
        ("case of B", "front"),
        ("case of B", "back"),
    ]
    first = rows[0]
    assert (first["reference_voxels"], first["predicted_voxels"]) == ("20", "20")
    assert [first[name] for name in ("dsc", "ace", "ece", "mce")] == ["1.000000", "0.187500", "0.150000", "0.250000"]


def test_an_absent_structure_leaves_its_cells_empty(measurement: Measurement, tmp_path: Path) -> None:
    """Undefined is nothing, not 0 and not NaN."""
    case = measurement.cases[0]
    absent = case.model_copy(update={"sum_y": [case.sum_y[0], case.sum_y[1], [0] * 20]})
    changed = measurement.model_copy(update={"cases": [absent]})

    (table, *_) = write_results(tmp_path, changed, ["front", "back"], "two boxes")

    with table.open() as file:
        back = list(csv.DictReader(file))[1]
    assert [back[name] for name in ("dsc", "ace", "ace_floor", "ece", "mce")] == [""] * 5
    assert back["brier"] != ""
