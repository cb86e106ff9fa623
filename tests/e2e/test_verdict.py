"""One verdict: whatever a result is turned into says the same of it as its summary."""

import csv
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pydicom
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from typer.testing import CliRunner

from service.api.monailabel.answer import describe
from service.bundle.card import CalibrationCard
from service.bundle.statement import Findings
from service.calibration.shift import Deviation, ShiftVerdict
from service.commands.batch.command import BatchRequest, run_command
from service.commands.batch.results import Segmented
from service.commands.cli import EXIT_WITHDRAWN, app
from service.commands.mercure import Report
from service.commands.predict import installed, served_here
from service.derived.dicom import read_outcome, write_dicom
from service.jobs.segmentation.status import WorkflowInput
from service.jobs.segmentation.worker import Worker
from service.observability.metrics import Metrics
from service.pacs.config import Pacs
from service.pipeline import run as run_module
from service.pipeline.run import run_case
from service.result.dicom.codes import STATUSES
from service.result.dicom.picture import BANNER, banner_of, page_lines
from service.result.files import mark_of, status_of
from service.result.outputs import result_file
from service.schemas import ALL_OUTPUTS, DEFAULT_OBJECTS, Job, Links, StatementStatus, Summary
from tests.dicom_series import series_of_array, zip_of_series

LIKE = ShiftVerdict(p=0.5, n_persons=33)
UNLIKE = ShiftVerdict(p=1 / 34, n_persons=33, off=(Deviation("volume of front", "ml", 9.0, 1.0, 2.0),))

FINDINGS: dict[StatementStatus, Findings] = {
    "holds": Findings(shift=LIKE),
    "withdrawn": Findings(shift=UNLIKE),
    "not compared": Findings(not_compared=("EchoTime",)),
}
"""What has to be found out about an answer for each verdict."""


@pytest.fixture(params=FINDINGS, name="status")
def status_(request: pytest.FixtureRequest) -> StatementStatus:
    """Return each verdict in turn."""
    status: StatementStatus = request.param
    return status


@pytest.fixture(name="scan")
def scan_(tmp_path: Path) -> Path:
    """Return the zip of a small MR series."""
    array = np.random.default_rng(4).normal(100, 9, (12, 10, 8)).astype(np.float32)
    path = tmp_path / "scan.zip"
    path.write_bytes(zip_of_series(series_of_array(array, np.diag([-1.0, -1.0, 1.0, 1.0]))))
    return path


@pytest.fixture(name="result")
def result_(
    status: StatementStatus, scan: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return the folder of a result about which that was found out."""
    monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tiny_bundle.parent))
    monkeypatch.setenv("CALIBRANT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(run_module, "findings_about", lambda *_, **__: FINDINGS[status])
    out = tmp_path / "result"
    out.mkdir()
    with served_here(installed("tiny")) as bundle:
        run_case(scan, bundle, out, lambda _stage, _done: None)
    return out


@pytest.fixture(name="summary")
def summary_(result: Path) -> Summary:
    """Return its summary."""
    return Summary.model_validate_json((result / "summary.json").read_bytes())


def test_the_summary_says_it_and_marks_every_volume(status: StatementStatus, summary: Summary) -> None:
    """JSON: figures stand beside a verdict that is not withdrawn, reasons beside one that does not hold."""
    statement = summary.statement

    assert statement.status == status
    assert (statement.figures is None) == (status == "withdrawn")
    assert bool(statement.reasons) == (status != "holds")
    assert {structure.withdrawn for structure in summary.structures} == {status == "withdrawn"}


@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_the_command_says_it(
    status: StatementStatus, result: Path, scan: Path, tmp_path: Path, strict: list[str]
) -> None:
    """Predict: a banner above and exit code 10 with --strict if withdrawn; otherwise neither."""
    assert status_of(result) == status
    done = CliRunner().invoke(app, ["predict", str(scan), "-o", str(tmp_path / "out"), "--model", "tiny", *strict])

    withdrawn = status == "withdrawn"
    assert done.exit_code == (EXIT_WITHDRAWN if strict and withdrawn else 0), done.output
    assert ("*** WITHDRAWN" in done.output.splitlines()[0]) == withdrawn
    (written,) = (tmp_path / "out").glob("*_summary.json")
    assert json.loads(written.read_text())["statement"]["status"] == status


def test_the_table_says_it(
    status: StatementStatus, result: Path, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch: the columns id, statement, reasons and mask; the mark in the table of structures; a line on the terminal."""

    class Here:
        """Gives the result for every scan."""

        identity, size = installed("tiny").identity, 1

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def segment(self, *_: object) -> Segmented:
            """Return the result."""
            summary = Summary.model_validate_json((result / "summary.json").read_bytes())
            return Segmented((result / "mask.nii.gz").read_bytes(), b"", summary)

    monkeypatch.setattr("service.commands.batch.command.Local", lambda *_: Here())
    (tmp_path / "scans").mkdir()
    scan.rename(tmp_path / "scans" / "a.zip")
    console = Console(width=200, record=True, quiet=False)
    assert run_command(BatchRequest(tmp_path / "scans", tmp_path / "out", url=None), console) == 0

    with (tmp_path / "out" / "cases.csv").open() as file:
        (row,) = csv.DictReader(file)
    with (tmp_path / "out" / "structures.csv").open() as file:
        marks = {structure["withdrawn"] for structure in csv.DictReader(file)}
    assert (row["id"], row["statement"], bool(row["reasons"])) == ("a", status, status != "holds")
    assert gzip.decompress((tmp_path / "out" / row["mask"]).read_bytes())
    assert marks == {str(status == "withdrawn")}
    assert ("1 results are WITHDRAWN" in console.export_text()) == (status == "withdrawn")


def test_dicom_says_it(status: StatementStatus, result: Path, tmp_path: Path) -> None:
    """SEG, SR and picture: series descriptions, segment labels, coded status and the burnt-in banner."""
    write_dicom(result, tmp_path, DEFAULT_OBJECTS, None)
    made = {name: pydicom.dcmread(tmp_path / f"{name}.dcm") for name in DEFAULT_OBJECTS}
    withdrawn = status == "withdrawn"

    assert {read.SeriesDescription.startswith("WITHDRAWN:") for read in made.values()} == {withdrawn}
    assert {s.SegmentLabel.startswith("WITHDRAWN:") for s in made["seg"].SegmentSequence} == {withdrawn}
    codes = [e.value[0].CodeValue for e in made["sr"].iterall() if e.keyword == "ConceptCodeSequence"]
    assert {code for code in codes if code in {other.value for other in STATUSES.values()}} == {STATUSES[status].value}
    outcome = read_outcome(result)
    assert banner_of(outcome).startswith("WITHDRAWN:") == withdrawn
    assert (banner_of(outcome) == BANNER) == (not withdrawn)
    assert next(page_lines(outcome)) == f"Statement of the calibration card: {status}"


def test_the_viewers_say_it(status: StatementStatus, result: Path) -> None:
    """MONAI Label's names, and the segments of .seg.nrrd, are all that 3D Slicer and OHIF show of a result."""
    links = Links(self="/v1/segmentations/7f", confidence="/v1/segmentations/7f/confidence")
    params = describe(Job.model_construct(id="7f", links=links), result)  # type: ignore[call-arg]  # only what is read
    segmentation = result_file("mask.nii.gz").conversions["seg.nrrd"].convert(result)
    withdrawn = status == "withdrawn"

    assert params["label_names"]
    assert {name.startswith("WITHDRAWN:") for name in params["label_names"]} == {withdrawn}
    assert params["calibration"]["statement"]["status"] == status
    assert (b"_Name:=WITHDRAWN: front" in segmentation) == withdrawn
    assert bool(mark_of(result)) == withdrawn


def test_the_metric_counts_it(status: StatementStatus, result: Path) -> None:
    """The counter of verdicts grows by one, with the status as its label."""
    metrics = Metrics()
    state: Any = SimpleNamespace(result=lambda _: result)
    nothing: Any = None
    worker = Worker(state, nothing, nothing, metrics, nothing, nothing, nothing)
    worker._log("7f", WorkflowInput("local", "0" * 64, "tiny@0", ALL_OUTPUTS), None)

    counted = {
        sample.labels["status"]: sample.value
        for family in text_string_to_metric_families(metrics.text({}, ready=True, free_bytes=0).decode())
        for sample in family.samples
        if sample.name == "calibrant_statements_total"
    }
    assert counted == {status: 1.0}


def test_the_pacs_and_mercure_obey_it(status: StatementStatus, result: Path, summary: Summary) -> None:
    """Of a withdrawn result a PACS gets no segmentation by default; mercure asks somebody to look."""
    pacs = Pacs.model_validate({"url": "http://127.0.0.1/"})
    report = Report("tiny@0", segmented=[{"summary": summary.model_dump(mode="json")}])
    withdrawn = status == "withdrawn"

    assert ("seg" in pacs.wanted(DEFAULT_OBJECTS, status_of(result))) == (not withdrawn)
    assert "sr" in pacs.wanted(DEFAULT_OBJECTS, status_of(result))
    assert report.document()["__mercure_notification"]["requested"] == withdrawn


def test_the_tiny_card_has_no_shift_test(tiny_bundle: Path) -> None:
    """What the findings of these tests replace: an answer by this card is not compared."""
    card = CalibrationCard.model_validate_json((tiny_bundle / "calibration.json").read_bytes())

    assert card.shift_test("whole") is None
