import errno
import json
import os
import stat
from pathlib import Path

import pytest

from service.errors import AuditBroken
from service.storage.audit import FILE, AuditLog, Event, entries, verify

JOB = "7f" * 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with a log of three lines."""
    os.umask(0o077)
    audit = AuditLog(tmp_path)
    audit.record(Event("createSegmentation", "lab", "k1", JOB, 202))
    audit.record(Event("getMask", "lab", "k1", JOB, 200))
    audit.record(Event("deleteSegmentation", "lab", "k1", JOB, 204))
    return tmp_path


def test_a_log_tells_who_did_what_and_names_no_job(root: Path) -> None:
    """Its lines hold owner, key, operation, status and a pseudonym, which the job's id leads to and not the other way."""
    lines = list(entries(root))

    assert [(line["n"], line["who"], line["key"], line["did"], line["status"]) for line in lines] == [
        (1, "lab", "k1", "createSegmentation", 202),
        (2, "lab", "k1", "getMask", 200),
        (3, "lab", "k1", "deleteSegmentation", 204),
    ]
    assert len({line["job"] for line in lines}) == 1
    assert JOB not in (root / FILE).read_text()
    assert list(entries(root, JOB)) == lines
    assert list(entries(root, "80" * 16)) == []
    assert stat.S_IMODE((root / FILE).stat().st_mode) == 0o600


def test_a_log_goes_on_after_a_restart_and_a_crash(root: Path) -> None:
    """The chain goes on, and half a line is cut off."""
    noted = verify(root)
    with (root / FILE).open("a") as file:
        file.write('{"n": 4, "at": "20')

    AuditLog(root).record(Event("listModels", left_out=2))

    assert verify(root, noted)[0] == 4
    assert [line.get("left_out") for line in entries(root)] == [None, None, None, 2]


@pytest.mark.parametrize("change", ["edit", "remove", "insert", "swap", "not JSON"])
def test_a_change_is_evident(root: Path, change: str) -> None:
    """Whatever is done to a line breaks the chain."""
    lines = (root / FILE).read_text().splitlines()
    changed = {
        "edit": [lines[0], lines[1].replace("lab", "bal"), lines[2]],
        "remove": [lines[0], lines[2]],
        "insert": [lines[0], lines[0], *lines[1:]],
        "swap": [lines[1], lines[0], lines[2]],
        "not JSON": [lines[0], "[]", lines[2]],
    }[change]
    (root / FILE).write_text("\n".join(changed) + "\n")

    with pytest.raises(AuditBroken, match=r"Line \d of the audit log was changed"):
        verify(root)


def test_lines_taken_from_the_end_are_missed(root: Path) -> None:
    """The rest is a chain, but what was noted is not in it."""
    noted = verify(root)
    lines = (root / FILE).read_text().splitlines()
    (root / FILE).write_text("\n".join(lines[:2]) + "\n")

    assert verify(root)[0] == 2
    with pytest.raises(AuditBroken, match="ends with line 2"):
        verify(root, noted)


def test_f7_a_full_disk_keeps_lines_waiting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written in their order as soon as there is room, and no half line stays."""
    audit, before = AuditLog(root), (root / FILE).read_bytes()

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        audit.record(Event("first"))
        audit.record(Event("second"))
        assert (root / FILE).read_bytes() == before

    audit.record(Event("third"))

    assert [line["did"] for line in entries(root)][3:] == ["first", "second", "third"]
    assert verify(root)[0] == 6


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    """Before the first event there is nothing to change."""
    (tmp_path / FILE).touch()
    AuditLog(tmp_path)

    assert verify(tmp_path) == (0, "0" * 64)
    assert json.loads("[]") == list(entries(tmp_path))
