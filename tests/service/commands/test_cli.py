import datetime as dt
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service import __version__
from service.commands import cli
from service.commands.batch.command import BatchRequest
from service.commands.batch.journal import Shard
from service.commands.doctor import Finding, Verdict
from service.commands.predict import WITHDRAWN_BANNER
from service.errors import (
    CalibrantError,
    ConstantVolume,
    DeviceUnavailable,
    InferenceCrashed,
    ModelNotFound,
    ServerProblem,
    ServerUnreachable,
    SettingsError,
)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def calibrant(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return the function that runs `calibrant` and returns exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["calibrant", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code or 0
        assert isinstance(code, int)
        return (code, *capsys.readouterr())

    return run


def test_version(calibrant: Command) -> None:
    """--version shows the version and exits with 0."""
    assert calibrant("--version") == (0, f"calibrant {__version__}\n", "")


def test_help_lists_every_command() -> None:
    """The commands of service and training are in one list, below the notice."""
    output = CliRunner().invoke(cli.app, ["--help"]).output

    for name in ("serve", "predict", "batch", "models", "doctor", "demo", "train", "evaluate"):
        assert f" {name} " in output
    assert "research use only" in output


def test_no_server_is_exit_code_3(calibrant: Command, tmp_path: Path) -> None:
    """Without a server there is one sentence on standard error, no traceback, and no file."""
    (tmp_path / "s.nii").write_bytes(b"voxels")
    code, out, err = calibrant("predict", tmp_path / "s.nii", "-o", tmp_path / "out", "--url", "http://127.0.0.1:1")

    assert (code, out) == (3, "")
    assert err.startswith("The server does not answer: http://127.0.0.1:1 did not answer")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_bad_scan_is_exit_code_6(calibrant: Command, tmp_path: Path, write_nifti: Callable[..., None]) -> None:
    """A scan that cannot be segmented is reported in one sentence, and no file is written."""
    write_nifti(tmp_path / "s.nii", np.full((6, 6, 6), np.nan, np.float32))
    code, out, err = calibrant("predict", tmp_path / "s.nii", "-o", tmp_path / "out")

    assert (code, out) == (6, "")
    assert err.startswith("Some voxels are not numbers: 216 of 216 voxels are NaN or infinite.")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_server_s_refusal_is_exit_code_6(calibrant: Command, server_url: str, tmp_path: Path) -> None:
    """A refusal by a running service has the same exit code as a local one."""
    (tmp_path / "s.nii").write_bytes(b"no scan")
    code, _, err = calibrant("predict", tmp_path / "s.nii", "-o", tmp_path / "out", "--url", server_url)

    assert code == 6
    assert "not NIfTI" in err


def test_a_predicted_scan_is_reported(calibrant: Command, hippocampus: Path, server_url: str, tmp_path: Path) -> None:
    """A success prints the report and the files' paths."""
    scan = hippocampus / "imagesTr" / "hippocampus_003.nii.gz"
    code, out, err = calibrant("predict", scan, "-o", tmp_path / "out", "--url", server_url)

    assert (code, err) == (0, "")
    assert out.removeprefix(f"{WITHDRAWN_BANNER}\n\n").startswith("structure")  # a drawn scan is withdrawn
    assert str(tmp_path / "out" / "hippocampus_003_dseg.nii.gz") in out


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ServerUnreachable("x"), 3),
        (ConstantVolume("x"), 6),
        (ModelNotFound("x"), 6),
        (ServerProblem("x", 413), 6),
        (ServerProblem("x", 500), 1),
        (ServerProblem("x", 503), 3),
        (ServerProblem("x", 429), 3),
        (DeviceUnavailable("x"), 3),
        (InferenceCrashed("x"), 1),
        (SettingsError("x"), 1),
        (CalibrantError("x"), 1),
    ],
)
def test_exit_codes_tell_who_is_at_fault(
    calibrant: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: CalibrantError, code: int
) -> None:
    """3 means no server or device, 6 the scan or the request, 1 everything else; title and detail are one line."""

    def fail(*_: object) -> None:
        raise error

    (tmp_path / "s.nii").touch()
    monkeypatch.setattr("service.commands.predict.predict_here", fail)

    assert calibrant("predict", tmp_path / "s.nii", "-o", tmp_path) == (code, "", f"{error.title}: x\n")


@pytest.mark.parametrize(
    "arguments", [["predict"], ["predict", "missing.nii", "-o", "out"], ["serve", "--port", "65536"], ["nonsense"]]
)
def test_a_wrong_command_line_is_exit_code_2(calibrant: Command, arguments: list[str]) -> None:
    """Usage errors keep typer's exit code."""
    code, out, _ = calibrant(*arguments)

    assert (code, out) == (2, "")


@pytest.mark.parametrize("shard", ["0/4", "5/4", "x"])
def test_a_shard_that_is_none_is_exit_code_2(calibrant: Command, tmp_path: Path, shard: str) -> None:
    """An invalid shard is a usage error, and nothing is written."""
    code, out, err = calibrant("batch", tmp_path, "-o", tmp_path / "out", "--shard", shard)

    assert (code, out) == (2, "")
    assert "expected i/n" in err
    assert not (tmp_path / "out").exists()


def test_batch_passes_on_what_was_asked_for(
    calibrant: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every option is passed on, --local replaces the address, and the exit code is returned."""
    seen: list[BatchRequest] = []

    def run(request: BatchRequest, _: object) -> int:
        seen.append(request)
        return 4

    monkeypatch.setattr("service.commands.batch.command.run_command", run)
    flags = ["--local", "--dry-run", "--retry-failed", "--parquet"]
    flags += ["--model", "m", "--jobs", "2", "--shard", "2/3", "--pattern", "*.nii"]

    assert calibrant("batch", tmp_path, "-o", tmp_path / "out", *flags)[0] == 4
    assert calibrant("batch", tmp_path, "-o", tmp_path / "out")[0] == 4
    every = BatchRequest(
        tmp_path, tmp_path / "out", None, "m", 2, Shard(2, 3), "*.nii", dry_run=True, retry_failed=True, parquet=True
    )
    assert seen == [every, BatchRequest(tmp_path, tmp_path / "out", "http://127.0.0.1:8000")]


def test_a_batch_without_a_case_is_exit_code_6(calibrant: Command, tmp_path: Path) -> None:
    """One sentence on standard error says how to find out why."""
    (tmp_path / "scans").mkdir()
    code, out, err = calibrant("batch", tmp_path / "scans", "-o", tmp_path / "out", "--local")

    assert (code, out) == (6, "")
    assert err.startswith("The source of the cases cannot be used: No case was found")


def test_models_here_and_there_are_the_same(calibrant: Command, server_url: str) -> None:
    """The table of this machine equals that of the service, apart from the service's broken bundle."""
    here, there = calibrant("models"), calibrant("models", "--url", server_url)

    assert here[0] == there[0] == 0
    for name in ("hippocampus-mr@", "yes", " cases of "):
        assert name in here[1]
        assert name in there[1]
    assert "broken" in there[1]
    assert "broken" not in here[1]


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_fails_where_something_is_missing(
    calibrant: Command, monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int
) -> None:
    """Warnings do not fail; the report is text or JSON."""
    finding = Finding(check="disk", verdict=verdict, found="little", do="Free some.")
    monkeypatch.setattr("service.commands.doctor.examine", lambda: [finding])

    assert calibrant("doctor")[:2] == (code, f"{verdict:4}  disk             little\n{'':23}Free some.\n")
    assert json.loads(calibrant("doctor", "--json")[1]) == [finding.model_dump()]


@pytest.mark.parametrize(("flags", "trusted"), [([], False), (["--behind-proxy"], True)])
def test_serve_passes_on_where_to_listen(
    calibrant: Command, monkeypatch: pytest.MonkeyPatch, flags: list[str], *, trusted: bool
) -> None:
    """Address, port and --behind-proxy reach the server; the default is a loopback address."""
    seen: list[tuple[bool, str, int]] = []
    monkeypatch.delenv("CALIBRANT_BEHIND_PROXY", raising=False)
    monkeypatch.setattr(
        "service.commands.serve.run_server",
        lambda settings, host, port: seen.append((settings.behind_proxy, host, port)),
    )

    assert calibrant("serve", "--port", "0", *flags)[0] == 0
    assert seen == [(trusted, "127.0.0.1", 0)]


@pytest.mark.parametrize("value", ["-1", "much"])
def test_a_wrong_setting_is_exit_code_1(calibrant: Command, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """An invalid CALIBRANT_* variable is one sentence that names it, not a traceback."""
    monkeypatch.setenv("CALIBRANT_MAX_WAIT_S", value)
    code, _, err = calibrant("serve", "--port", "0")

    assert code == 1
    assert "max_wait_s" in err.lower()
    assert "Traceback" not in err


def test_keys_are_made_shown_and_removed(calibrant: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The key is printed once and alone; the list shows id, owner, date and right, never a secret."""
    monkeypatch.setenv("CALIBRANT_KEYS_FILE", str(tmp_path / "keys.json"))
    code, lab, err = calibrant("keys", "add", "radiology-lab")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"cal_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\n", lab)
    _, admin, _ = calibrant("keys", "add", "root", "--admin")

    code, listed, _ = calibrant("keys", "list")

    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    identifiers = [key.split("_")[1] for key in (lab, admin)]
    assert code == 0
    assert [line.split() for line in listed.splitlines()] == [
        [identifiers[0], "radiology-lab", today],
        [identifiers[1], "root", today, "admin"],
    ]
    assert calibrant("keys", "remove", identifiers[0]) == (0, "", "")
    assert calibrant("keys", "list")[1].split()[0] == identifiers[1]
    code, _, err = calibrant("keys", "remove", identifiers[0])
    assert code == 6
    assert "calibrant keys list" in err


def test_keys_need_a_file_and_a_usable_name(
    calibrant: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A missing file is a usage error; an invalid owner or a damaged file is one sentence."""
    monkeypatch.delenv("CALIBRANT_KEYS_FILE", raising=False)
    assert calibrant("keys", "list")[0] == 2
    path = tmp_path / "keys.json"
    assert calibrant("keys", "list", "--file", path) == (0, "", "")

    code, out, err = calibrant("keys", "add", "Radiology Lab", "--file", path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "lower-case letters" in err
    path.write_text("{")
    code, out, err = calibrant("keys", "add", "lab", "--file", path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "not a file of keys" in err


def test_a_pacs_is_tried_from_the_command_line(calibrant: Command, tmp_path: Path) -> None:
    """There is a line for every check, and exit code 1 if one failed; an unknown name is an input error."""
    (tmp_path / "pacs.toml").write_text('[pacs.clinic]\nurl = "http://127.0.0.1:9/dicom-web"\n')
    code, out, _ = calibrant("pacs", "test", "clinic", "--file", tmp_path / "pacs.toml")
    assert (code, out.split()[:2]) == (1, ["fail", "QIDO-RS"])
    assert calibrant("pacs", "test", "nowhere", "--file", tmp_path / "pacs.toml")[0] == 6


def test_receiving_needs_a_receiver(calibrant: Command, tmp_path: Path) -> None:
    """Without a [receiver], the message names the page of documentation."""
    (tmp_path / "pacs.toml").write_text("")
    code, _, err = calibrant("receive", "--file", tmp_path / "pacs.toml")
    assert (code, "docs/pacs.md" in err) == (1, True)
