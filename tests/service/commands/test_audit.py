import json
from pathlib import Path

import pytest

from service.commands.audit import check_audit, show_audit
from service.errors import AuditBroken, SettingsError
from service.storage.audit import FILE, AuditLog, Event


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with a log of one line."""
    AuditLog(tmp_path).record(Event("getMask", "lab", "k1", "7f", 200))
    return tmp_path


def test_the_log_is_shown_as_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is an object; a job that nobody touched has none."""
    show_audit(root, None)
    assert json.loads(capsys.readouterr().out)["did"] == "getMask"
    show_audit(root, "80")
    assert capsys.readouterr().out == ""


def test_a_check_says_what_to_note(root: Path) -> None:
    """What it shows can be given to the next check, which misses lines that were taken from the end."""
    noted = check_audit(root, None).rpartition(" ")[2]
    assert check_audit(root, noted).startswith("1 lines, none changed.")

    (root / FILE).write_text("")

    with pytest.raises(AuditBroken):
        check_audit(root, noted)


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    """A directory without a log, and a note that is none."""
    with pytest.raises(SettingsError, match="CALIBRANT_STATE_DIR"):
        check_audit(tmp_path, None)
    with pytest.raises(SettingsError, match="NUMBER:HASH"):
        check_audit(tmp_path, "x")
