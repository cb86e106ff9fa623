import csv
import dataclasses
import datetime as dt
import time
from pathlib import Path

import pytest
from PIL import Image

from model_training.evaluation.evaluate import Evaluation
from model_training.evaluation.results import COLUMNS, rows_of, write_results
from model_training.evaluation.surfaces import SurfaceScores
from service.bundle.description import describe_bundle
from service.schemas import Reliability


@pytest.fixture
def evaluation(tiny_bundle: Path) -> Evaluation:
    """Return an evaluation of the tiny bundle: two cases of 100 voxels, 20 of each structure, all correct with p = 0.75."""
    description = describe_bundle(tiny_bundle)
    return Evaluation(
        measurement=description.card.measurements[0],
        structures=["front", "back"],
        surfaces={f"case of {person}": [SurfaceScores(1.5, 0.75), SurfaceScores(2.0, 0.5)] for person in "AB"},
        nsd_tolerance_mm=1.0,
        model="tiny",
        version="0.0.1",
        identity=description.identity,
        population=description.card.population,
        split="all",
        trained_on=False,
        conventions=description.card.conventions,
        date=dt.date(2026, 1, 31),
    )


def with_case(evaluation: Evaluation, **changes: object) -> Evaluation:
    """Return the evaluation with its first case alone, whose record is changed."""
    record = evaluation.measurement.cases[0].model_copy(update=changes)
    measurement = evaluation.measurement.model_copy(update={"cases": [record]})
    return dataclasses.replace(evaluation, measurement=measurement)


def read(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with table.open() as file:
        return list(csv.DictReader(file))


def test_files_are_written_and_named(evaluation: Evaluation, tmp_path: Path) -> None:
    """All cases together have a table, a document and two pictures; each case has a document and two pictures."""
    files = write_results(tmp_path / "out", evaluation)

    assert [path.name for path in files] == [
        "cases.csv",
        "reliability.json",
        "reliability.png",
        "reliability.svg",
        "images",
    ]
    reliability = Reliability.model_validate_json(files[1].read_bytes())
    assert (reliability.source, reliability.n_cases) == ("tiny on two boxes, all", 2)
    names = {f"case of {person}.{extension}" for person in "AB" for extension in ("json", "png", "svg")}
    assert {path.name for path in files[4].iterdir()} == names
    with Image.open(files[4] / "case of A.png") as picture:
        assert picture.width > 500
    assert (files[4] / "case of A.svg").read_text().startswith("<?xml")


def test_the_document_of_an_image_is_of_that_image_alone(evaluation: Evaluation, tmp_path: Path) -> None:
    """A case's document has the same form as that of all cases, is named after the case, and counts its voxels alone."""
    folder = write_results(tmp_path, evaluation)[-1]

    reliability = Reliability.model_validate_json((folder / "case of B.json").read_bytes())

    assert (reliability.source, reliability.n_cases) == ("tiny on two boxes, all: case of B", 1)
    assert [(s.name, s.count[2], s.count[14], s.ace) for s in reliability.structures] == [
        ("front", 80, 20, 0.1875),
        ("back", 80, 20, 0.1875),
    ]


def test_the_table_has_a_row_per_case_and_structure(evaluation: Evaluation, tmp_path: Path) -> None:
    """With gaps of 0.25 and 0.125 in bins of 20 and 80 voxels, ACE is 0.1875, ECE 0.15 and MCE 0.25; DSC is 1."""
    rows = read(write_results(tmp_path, evaluation)[0])

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
    assert [first[name] for name in ("ace_floor", "ace_excess")] == ["0.020000", "0.167500"]
    assert [(row["hd95_mm"], row["nsd"]) for row in rows[:2]] == [("1.500000", "0.750000"), ("2.000000", "0.500000")]


def test_volume_error_is_signed_and_in_millilitres(evaluation: Evaluation) -> None:
    """With 15 and 30 voxels of 2 x 2 x 5 mm where the reference has 20, the errors are -0.1 ml and +0.2 ml."""
    front, back = rows_of(with_case(evaluation, predicted=[55, 15, 30], spacing_mm=(2.0, 2.0, 5.0)))

    assert (front.volume_error_ml, front.volume_error_percent) == pytest.approx((-0.1, -25.0))
    assert (back.volume_error_ml, back.volume_error_percent) == pytest.approx((0.2, 50.0))


def test_an_absent_structure_leaves_its_cells_empty(evaluation: Evaluation, tmp_path: Path) -> None:
    """Undefined cells are empty, neither 0 nor NaN; the falsely predicted volume is still an error in ml."""
    sum_y = evaluation.measurement.cases[0].sum_y
    absent = with_case(evaluation, sum_y=[sum_y[0], sum_y[1], [0] * 20])
    scores = [SurfaceScores(1.5, 0.75), SurfaceScores.undefined()]

    back = read(write_results(tmp_path, dataclasses.replace(absent, surfaces={"case of A": scores}))[0])[1]

    empty = ("dsc", "hd95_mm", "nsd", "volume_error_percent", "ace", "ace_floor", "ace_excess", "ece", "mce")
    assert [back[name] for name in empty] == [""] * 9
    assert back["volume_error_ml"] == "0.020000"
    assert back["brier"] != ""


def test_without_the_voxel_size_nothing_is_given_in_millimetres(evaluation: Evaluation, tmp_path: Path) -> None:
    """Distances and millilitres are empty; the relative error of the volume needs no voxel size."""
    unknown = dataclasses.replace(evaluation, surfaces=None, nsd_tolerance_mm=None)

    row = read(write_results(tmp_path, unknown)[0])[0]

    assert [row[name] for name in ("hd95_mm", "nsd", "volume_error_ml")] == ["", "", ""]
    assert row["volume_error_percent"] == "0.000000"
    assert row["dsc"] == "1.000000"


def test_the_pictures_of_many_cases_take_a_fraction_of_a_second_each(evaluation: Evaluation, tmp_path: Path) -> None:
    """Ten cases as PNG and SVG take less than a second of work each, so that 200 do not take minutes."""
    record = evaluation.measurement.cases[0]
    cases = [record.model_copy(update={"case": f"case {i}"}) for i in range(10)]
    many = dataclasses.replace(
        evaluation,
        measurement=evaluation.measurement.model_copy(update={"cases": cases}),
        surfaces=None,
    )

    start = time.process_time()
    folder = write_results(tmp_path, many)[-1]

    assert len(list(folder.glob("*.png"))) == 10
    assert time.process_time() - start < 10
