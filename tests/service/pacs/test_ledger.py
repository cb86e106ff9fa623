from pathlib import Path

from pydicom import dcmread

from service.pacs.instance import content_digest
from service.pacs.ledger import Ledger


def test_a_ledger_knows_every_object_by_what_it_says(tmp_path: Path, series_files: list[Path]) -> None:
    """Identifiers, names and digests; what was saved is what is read."""
    ledger = Ledger.of("lab", "clinic", series_files)
    ledger.save(tmp_path)
    found = Ledger.read(tmp_path)
    assert found == ledger
    assert [entry.uid for entry in found.pending] == [str(dcmread(path).SOPInstanceUID) for path in series_files]
    assert found.entries[0].content == content_digest(series_files[0].read_bytes())
    assert Ledger.read(tmp_path / "absent") is None


def test_what_was_given_up_can_be_revived(series_files: list[Path]) -> None:
    """Only that: what is stored stays stored."""
    ledger = Ledger.of("lab", "clinic", series_files)
    ledger.entries[0].state, ledger.entries[1].state = "dead", "stored"
    assert (len(ledger.dead), len(ledger.pending)) == (1, 4)
    ledger.revive()
    assert (len(ledger.dead), len(ledger.pending), ledger.retries) == (0, 5, 1)


def test_a_ledger_names_no_patient(tmp_path: Path, series_files: list[Path], canary: str) -> None:
    """It lies beside the objects, which do."""
    Ledger.of("lab", "clinic", series_files).save(tmp_path)
    assert all(canary not in path.read_text() for path in tmp_path.glob("*.json"))


def test_a_report_is_what_a_later_result_names(tmp_path: Path, series_files: list[Path]) -> None:
    """Unless it was given up: the PACS does not have it."""
    assert Ledger.of("lab", "clinic", series_files).report is None
    ledger = Ledger.of("lab", "clinic", [series_files[0].rename(tmp_path / "sr.dcm")])
    assert (ledger.report.series_instance_uid, ledger.report.sop_instance_uid) == ("1.2.5", "1.2.3.1")
    ledger.entries[0].state = "dead"
    assert ledger.report is None
