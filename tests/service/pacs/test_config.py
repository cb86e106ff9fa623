from pathlib import Path

import pytest

from service.errors import PacsNotFound, SettingsError
from service.pacs.config import PacsFile, Secret, Tls, read_pacs_file

WHOLE = """
[pacs.clinic]
url = "https://pacs.example/dicom-web"
user = "calibrant"
password = { env = "CLINIC_PASSWORD" }

[pacs.old]
dimse = { host = "10.0.0.7", port = 104, aet = "OLD" }

[[rule]]
pacs = "clinic"
select = { modality = "MR", description = "T1" }

[webhook]
pacs = "clinic"
secret = { file = "/etc/secret" }

[receiver]
allowed = ["CT1"]

[[rule]]
pacs = "received"
destination = "old"
"""


def write(tmp_path: Path, text: str) -> Path:
    """Write a PACS file and return its path."""
    path = tmp_path / "pacs.toml"
    path.write_text(text)
    return path


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    """A file with DICOMweb, DIMSE, rules, webhook and receiver is understood."""
    file = read_pacs_file(write(tmp_path, WHOLE))
    assert str(file.find("clinic").url) == "https://pacs.example/dicom-web"
    old = file.find("old").dimse
    assert old is not None
    assert old.aet == "OLD"
    assert [rule.pacs for rule in file.rule] == ["clinic", "received"]
    assert read_pacs_file(None) == PacsFile()


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """The message has their names but not their addresses."""
    with pytest.raises(PacsNotFound, match="clinic, old") as caught:
        read_pacs_file(write(tmp_path, WHOLE)).find("elsewhere")
    assert "example" not in caught.value.detail


@pytest.mark.parametrize(
    "text",
    [
        "[pacs.a]",
        '[pacs.a]\nurl = "http://x"\ndimse = { host = "x", port = 104, aet = "X" }',
        '[pacs.a]\nurl = "ftp://x"',
        '[pacs.a]\nurl = "http://x"\nuser = "u"',
        '[pacs.a]\nurl = "http://x"\npassword = { env = "A", file = "B" }\nuser = "u"',
        '[pacs.a]\nurl = "http://x"\ntypo = 1',
        '[pacs.A_B]\nurl = "http://x"',
        '[pacs.a]\ndimse = { host = "x", port = 104, aet = "SEVENTEEN LETTERS" }',
        '[[rule]]\npacs = "a"',
        '[pacs.a]\nurl = "http://x"\n[[rule]]\npacs = "a"\nselect = { description = "(" }',
        "[receiver]\nallowed = []",
        '[receiver]\nallowed = ["A"]\n[[rule]]\npacs = "received"',
        "not = toml = at all",
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    """The service does not start with an invalid configuration."""
    with pytest.raises(SettingsError, match="PACS file"):
        read_pacs_file(write(tmp_path, text))


def test_a_refusal_repeats_no_value(tmp_path: Path) -> None:
    """A password in the wrong place is not repeated."""
    with pytest.raises(SettingsError) as caught:
        read_pacs_file(write(tmp_path, '[pacs.a]\nurl = "http://x"\nuser = "u"\npassword = "hunter2"'))
    assert "hunter2" not in caught.value.detail
    with pytest.raises(SettingsError, match="cannot be read"):
        read_pacs_file(tmp_path / "absent.toml")


def test_secrets_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surrounding white space is removed."""
    monkeypatch.setenv("PACS_SECRET", " s3cret\n")
    assert Secret(env="PACS_SECRET").read() == "s3cret"
    (tmp_path / "secret").write_text("other\n")
    assert Secret(file=tmp_path / "secret").read() == "other"
    monkeypatch.delenv("PACS_SECRET")
    for absent in (Secret(env="PACS_SECRET"), Secret(file=tmp_path / "absent")):
        with pytest.raises(SettingsError):
            absent.read()


def test_missing_certificates_are_refused(tmp_path: Path) -> None:
    """The error is raised at the start, not at the first series."""
    with pytest.raises(SettingsError, match="certificates"):
        Tls(ca_file=tmp_path / "absent.pem").context()
