from pathlib import Path

from pydicom import dcmread

from service.pacs.instance import content_digest
from service.pacs.ledger import Ledger
from service.schemas import Superseded


def test_a_ledger_lists_every_object(tmp_path: Path, series_files: list[Path]) -> None:
    """UIDs, file names and digests are the same after saving and reading."""
    ledger = Ledger.of("lab", "clinic", series_files)
    ledger.save(tmp_path)
    assert Ledger.read(tmp_path) == ledger
    assert [entry.uid for entry in ledger.pending] == [str(dcmread(path).SOPInstanceUID) for path in series_files]
    assert ledger.entries[0].content == content_digest(series_files[0].read_bytes())
    assert Ledger.read(tmp_path / "absent") is None


def test_dead_letters_can_be_revived(series_files: list[Path]) -> None:
    """Objects that were given up become pending; stored ones stay stored."""
    ledger = Ledger.of("lab", "clinic", series_files)
    ledger.entries[0].state, ledger.entries[1].state = "dead", "stored"
    assert (len(ledger.dead), len(ledger.pending)) == (1, 4)
    ledger.revive()
    assert (len(ledger.dead), len(ledger.pending), ledger.retries) == (0, 5, 1)


def test_a_ledger_names_no_patient(tmp_path: Path, series_files: list[Path], canary: str) -> None:
    """The objects beside it do, but the ledger holds no patient data."""
    Ledger.of("lab", "clinic", series_files).save(tmp_path)
    assert all(canary not in path.read_text() for path in tmp_path.glob("*.json"))


def test_a_later_result_supersedes_the_report(tmp_path: Path, series_files: list[Path]) -> None:
    """A report that was given up is not named, since the PACS does not have it."""
    assert Ledger.of("lab", "clinic", series_files).report is None
    ledger = Ledger.of("lab", "clinic", [series_files[0].rename(tmp_path / "sr.dcm")])
    assert ledger.report == Superseded(series_instance_uid="1.2.5", sop_instance_uid="1.2.3.1")
    ledger.entries[0].state = "dead"
    assert ledger.report is None
