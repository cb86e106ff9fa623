import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from service.commands.batch.case import BatchCase
from service.commands.batch.journal import Journal, Line, Shard
from service.commands.batch.results import Segmented, write_results
from service.commands.batch.table import CASE_COLUMNS, STRUCTURE_COLUMNS, write_tables
from service.errors import SettingsError
from service.schemas import RESEARCH_USE_ONLY, Summary

MakeLine = Callable[..., Line]

PROBLEM = {"type": "/problems/constant-volume", "title": "t", "status": 422, "detail": 'All are "42", all.'}


@pytest.fixture
def out(tmp_path: Path, make_line: MakeLine, summary: Summary) -> Path:
    """Return the folder of a batch with a success, a failure, and a case that failed before it succeeded."""
    with Journal.open(tmp_path, Shard()) as journal:
        for name in ("a", "c"):
            if name == "c":
                journal.append(make_line("c", problem=PROBLEM, finished="2026-01-31T11:00:00Z"))
            files, sidecar = write_results(
                tmp_path, BatchCase.of_file(name, Path("x")), "ab" * 32, Segmented(b"M", b"C", summary)
            )
            journal.append(make_line(name, files=files, sidecar=sidecar, dsc={"front": 0.5, "back": None}))
        journal.append(make_line("b", problem=PROBLEM))
    return tmp_path


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_per_case_as_it_was_done_last(out: Path, summary: Summary) -> None:
    """A success has the summary's figures, a failure its problem; only the last line of a case counts."""
    assert write_tables(out) == [out / "cases.csv", out / "structures.csv"]
    a, b, c = read(out / "cases.csv")

    assert tuple(a) == CASE_COLUMNS
    assert (a["id"], a["state"], a["model"], a["input_sha256"]) == ("a", "succeeded", summary.model, "ab" * 32)
    assert (a["volume_ml"], a["mean_confidence"], a["statement"]) == ("1.234", "0.8765", "withdrawn")
    assert (a["reasons"], a["warnings"]) == ("extent along axis 1: 9.0 mm spacing", "Two orientations.")
    assert a["mask"] == "a/a_seg-tinymodel_dseg.nii.gz"
    assert (b["state"], b["problem"], b["detail"]) == ("failed", "/problems/constant-volume", 'All are "42", all.')
    assert (b["volume_ml"], b["mask"]) == ("", "")
    assert (c["id"], c["state"], c["problem"]) == ("c", "succeeded", "")
    assert {row["research_use_only"] for row in (a, b, c)} == {RESEARCH_USE_ONLY}


def test_a_row_per_structure(out: Path) -> None:
    """A row has volume, confidence and DSC; undefined values are empty, never 0 or nan."""
    write_tables(out)
    rows = read(out / "structures.csv")

    assert tuple(rows[0]) == STRUCTURE_COLUMNS
    assert [(row["id"], row["name"]) for row in rows] == [("a", "front"), ("a", "back"), ("c", "front"), ("c", "back")]
    assert (rows[0]["voxels"], rows[0]["volume_ml"], rows[0]["mean_confidence"]) == ("1234", "1.234", "0.8765")
    assert (rows[0]["dsc"], rows[1]["mean_confidence"], rows[1]["dsc"]) == ("0.5", "", "")


def test_a_structure_that_is_cut_off_has_no_volume(tmp_path: Path, make_line: MakeLine, summary: Summary) -> None:
    """A truncated structure has no volume, and so the case has none."""
    front, back = summary.structures
    cut = summary.model_copy(
        update={"structures": [front, back.model_copy(update={"volume_ml": None, "truncated": True})]}
    )
    files, sidecar = write_results(tmp_path, BatchCase.of_file("a", Path("x")), "ab" * 32, Segmented(b"M", b"C", cut))
    with Journal.open(tmp_path, Shard()) as journal:
        journal.append(make_line("a", files=files, sidecar=sidecar))
    write_tables(tmp_path)

    assert read(tmp_path / "cases.csv")[0]["volume_ml"] == ""
    assert [(row["volume_ml"], row["truncated"]) for row in read(tmp_path / "structures.csv")] == [
        ("1.234", "False"),
        ("", "True"),
    ]


def test_a_sidecar_that_was_taken_away_leaves_the_row(out: Path) -> None:
    """Without the sidecar, the log still says how the case ended."""
    next(out.glob("a/*_dseg.json")).unlink()
    write_tables(out)

    row, *_ = read(out / "cases.csv")
    assert (row["id"], row["state"], row["volume_ml"]) == ("a", "succeeded", "")


def test_two_models_are_two_rows(out: Path, make_line: MakeLine) -> None:
    """Different models have separate rows; a new version of a model replaces the old one."""
    with Journal.open(out, Shard()) as journal:
        journal.append(make_line("b", model="other@1", finished="2026-02-01T12:00:00Z"))
        journal.append(make_line("b", model="other@2", finished="2026-02-02T12:00:00Z"))
    write_tables(out)

    models = [row["model"] for row in read(out / "cases.csv") if row["id"] == "b"]
    assert [model.partition("@")[0] for model in models] == ["other", "tiny-model"]
    assert models[0] == "other@2"


def test_parquet_holds_the_same_rows(out: Path) -> None:
    """Pyarrow reads the same rows, with numbers, and null for missing values."""
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = write_tables(out, parquet=True)
    rows = parquet.read_table(out / "structures.parquet").to_pylist()

    assert [path.name for path in paths] == ["cases.csv", "cases.parquet", "structures.csv", "structures.parquet"]
    assert [row["voxels"] for row in rows] == [1234, 0, 1234, 0]
    assert rows[1]["mean_confidence"] is None
    assert [row["id"] for row in parquet.read_table(out / "cases.parquet").to_pylist()] == ["a", "b", "c"]


def test_without_pyarrow_parquet_says_what_to_install(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message gives the command to install pyarrow."""
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(SettingsError, match=r"pip install 'calibrant\[parquet\]'"):
        write_tables(out, parquet=True)


def test_an_empty_batch_has_empty_tables(tmp_path: Path) -> None:
    """An empty table has its columns."""
    write_tables(tmp_path)

    assert (tmp_path / "cases.csv").read_text() == ",".join(CASE_COLUMNS) + "\n"
