import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.commands import doctor
from service.commands.doctor import Finding, examine, filesystem_of, report
from service.errors import DecoderCrashed
from service.settings import Settings
from service.storage.keys import add_key


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALIBRANT_STATE_DIR", str(tmp_path / "state"))


def only(findings: Iterator[Finding]) -> Finding:
    """Return the single finding of a check."""
    (finding,) = findings
    return finding


def test_a_sound_machine_has_no_failure() -> None:
    """Every check has a finding, and every problem says what to do."""
    findings = examine()

    assert [finding for finding in findings if finding.verdict == "fail"] == []
    assert {finding.check for finding in findings} == {
        *("calibrant", "libraries", "device", "machine", "state directory", "model", "keys", "sandbox", "port"),
    }
    assert all(finding.do for finding in findings if finding.verdict != "ok")


def test_settings_that_cannot_be_used_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invalid settings are a finding and do not end the examination."""
    monkeypatch.setenv("CALIBRANT_MAX_WAIT_S", "-1")
    *_, last = examine()

    assert (last.check, last.verdict) == ("settings", "fail")
    assert "MAX_WAIT_S" in last.found


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is named, with what to do."""
    monkeypatch.setattr(doctor, "LIBRARIES", ("numpy", "no-such-library"))
    *_, libraries = doctor._versions()

    assert (libraries.verdict, libraries.found) == ("fail", "missing: no-such-library")


def test_a_device_that_is_not_there_is_a_failure() -> None:
    """A GPU that does not exist is reported, and does not hide a device that does."""
    missing, there = doctor._device(Settings(device="cuda:77,cpu"))

    assert (missing.verdict, missing.found) == ("fail", "cuda:77 does not compute")
    assert missing.do.startswith("cuda:77 cannot be used: torch ")
    assert there.verdict == "ok"
    assert there.found.startswith("cpu: ")
    assert only(doctor._device(Settings(device="nonsense"))).verdict == "fail"


def test_a_gpu_that_is_not_used_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is shown, and the setting that would use it."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H100")
    *_, warning = doctor._device(Settings(device="cpu"))

    assert (warning.verdict, warning.found) == ("warn", "unused: NVIDIA H100")
    assert "CALIBRANT_DEVICE=auto" in warning.do


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory is a warning, because small scans need no more."""
    monkeypatch.setattr(doctor, "LEAST_MEMORY_BYTES", 1 << 60)

    assert only(doctor._machine()).verdict == "warn"


def test_a_state_directory_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    """A file in place of the directory is reported."""
    (tmp_path / "file").touch()
    finding = only(doctor._state_directory(tmp_path / "file" / "state"))

    assert finding.verdict == "fail"
    assert "CALIBRANT_STATE_DIR" in finding.do


def test_a_state_directory_on_a_network_share_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network file systems are refused, because SQLite's locks do not work there."""
    monkeypatch.setattr(doctor, "filesystem_of", lambda _: "nfs4")
    finding = only(doctor._state_directory(tmp_path))

    assert (finding.verdict, "local disk" in finding.do) == ("fail", True)


def test_little_space_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little free space is a warning that says how to free some."""
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 60)

    assert only(doctor._state_directory(tmp_path)).verdict == "warn"


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    """The deepest mount point above the folder counts, also with a space in its name."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path}/a\\040share nfs4 rw 0 0\n")
    (tmp_path / "a share" / "state").mkdir(parents=True)

    assert filesystem_of(tmp_path / "a share" / "state", mounts) == "nfs4"
    assert filesystem_of(tmp_path, mounts) == "ext4"
    assert filesystem_of(tmp_path, tmp_path / "none") == ""


def test_a_broken_bundle_is_a_warning_no_bundle_a_failure(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A broken bundle is a warning while others can be served, and otherwise a failure."""
    monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tiny_bundle.parent))
    (tiny_bundle / "LICENSE").write_text("changed")
    assert [finding.verdict for finding in doctor._bundles()] == ["ok", "warn"]

    (tmp_path / "none").mkdir()
    monkeypatch.setattr("service.commands.predict.SHIPPED", tmp_path / "none")
    assert [finding.verdict for finding in doctor._bundles()] == ["warn", "fail"]

    monkeypatch.setenv("CALIBRANT_BUNDLE_DIR", str(tmp_path / "gone"))
    assert [finding.verdict for finding in doctor._bundles()] == ["fail"]


def test_a_file_of_keys_is_looked_at(tmp_path: Path) -> None:
    """Missing, valid, world-readable, empty and damaged key files have different findings."""
    path = tmp_path / "keys.json"
    assert only(doctor._keys(None)).verdict == "ok"
    assert only(doctor._keys(path)).verdict == "fail"
    add_key(path, "lab", admin=False)
    assert only(doctor._keys(path)).verdict == "ok"
    path.chmod(0o644)
    assert (only(doctor._keys(path)).verdict, only(doctor._keys(path)).do) == ("warn", f"chmod 600 {path}")
    path.write_text("{")
    assert only(doctor._keys(path)).verdict == "fail"


def test_a_sandbox_that_does_not_work_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken sandbox is a failure; a kernel without Landlock is a warning."""
    monkeypatch.setattr("service.intake.landlock.landlock_version", lambda: 0)
    assert only(doctor._sandbox()).verdict == "warn"

    def die(_: object) -> None:
        raise DecoderCrashed("died")  # noqa: EM101 - a test's message

    monkeypatch.setattr("service.intake.sandbox.decode_sandboxed", die)
    assert (only(doctor._sandbox()).verdict, only(doctor._sandbox()).do) == ("fail", "died")


def test_a_port_that_is_taken_is_a_warning() -> None:
    """A taken port is a warning, because a running service may hold it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert only(doctor._port(listener.getsockname()[1])).verdict == "warn"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        free = listener.getsockname()[1]
    assert only(doctor._port(free)).verdict == "ok"


def test_the_report_has_a_line_each(tmp_path: Path) -> None:
    """The report has verdict, check and finding in a line, and what to do below."""
    del tmp_path
    findings = [Finding(check="a", verdict="ok", found="x"), Finding(check="b", verdict="warn", found="y", do="z")]

    assert report(findings).splitlines() == [
        "ok    a                x",
        "warn  b                y",
        "                       z",
    ]
