import re
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.errors import SettingsError
from service.settings import Settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove every setting from the environment of the tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CALIBRANT_{name.upper()}", raising=False)


def test_defaults_are_safe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The defaults are the user's state folder, the CPU, a limit of 2 GiB and no trusted proxy."""
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings()

    assert settings.state_dir == tmp_path / ".local" / "state" / "calibrant"
    assert settings.bundle_dir is None
    assert settings.device == "cpu"
    assert settings.max_upload_bytes == 2 * 1024**3
    assert (settings.case_deadline_s, settings.max_wait_s) == (600, 60)
    assert settings.behind_proxy is False
    assert (settings.keys_file, settings.session_hours) == (None, 8)
    assert (settings.retention_days, settings.logits_retention_days) == (30, None)
    assert not settings.state_dir.exists()


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables have the prefix CALIBRANT_; others are ignored."""
    values = {"STATE_DIR": "/s", "BUNDLE_DIR": "/b", "DEVICE": "cuda:1", "MAX_UPLOAD_BYTES": "7"}
    values |= {"CASE_DEADLINE_S": "0.5", "MAX_WAIT_S": "2", "BEHIND_PROXY": "true", "UNKNOWN": "1"}
    values |= {"KEYS_FILE": "/k.json", "SESSION_HOURS": "0.5", "RETENTION_DAYS": "30", "LOGITS_RETENTION_DAYS": "1.5"}
    values |= {"MEMORY_BYTES": str(1 << 30)}
    for name, value in values.items():
        monkeypatch.setenv(f"CALIBRANT_{name}", value)
    monkeypatch.setenv("STATE_DIR", "/elsewhere")
    settings = Settings()

    assert (settings.state_dir, settings.bundle_dir, settings.device) == (Path("/s"), Path("/b"), "cuda:1")
    assert (settings.max_upload_bytes, settings.case_deadline_s, settings.max_wait_s) == (7, 0.5, 2)
    assert settings.behind_proxy is True
    assert (settings.keys_file, settings.session_hours) == (Path("/k.json"), 0.5)
    assert (settings.retention_days, settings.logits_retention_days) == (30, 1.5)
    assert settings.memory_bytes == 1 << 30


def test_f8_how_long_jobs_are_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default is 30 days and says how to keep them; a choice is said without that."""
    assert Settings().retention_is_default
    assert Settings().retention_text == (
        "finished jobs are erased after 30 days (unfinished ones never); CALIBRANT_RETENTION_DAYS=never keeps them"
    )
    monkeypatch.setenv("CALIBRANT_RETENTION_DAYS", "7.5")
    assert Settings().retention_text == "finished jobs are erased after 7.5 days (unfinished ones never)"
    monkeypatch.setenv("CALIBRANT_RETENTION_DAYS", "never")
    assert (Settings().retention_days, Settings().retention_is_default) == (None, False)
    assert Settings().retention_text == "finished jobs are kept until somebody deletes them"


def test_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument overrides the variable."""
    monkeypatch.setenv("CALIBRANT_BEHIND_PROXY", "false")

    assert Settings(behind_proxy=True).behind_proxy is True


@pytest.mark.parametrize(
    "name",
    [
        "MAX_UPLOAD_BYTES",
        "CASE_DEADLINE_S",
        "MAX_WAIT_S",
        "SESSION_HOURS",
        "RETENTION_DAYS",
        "LOGITS_RETENTION_DAYS",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "much"])
def test_limits_must_be_positive(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A limit that is not a positive number is refused."""
    monkeypatch.setenv(f"CALIBRANT_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_pins_name_each_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that stands twice, or a pin without a whole hash, is refused; nothing is no pin."""
    one, other = "a" * 64, "b" * 64
    for text, pins in (("", None), (f"x@{one}, y@{other}", {"x": one, "y": other})):
        monkeypatch.setenv("CALIBRANT_BUNDLE_PINS", text)
        assert Settings().bundle_pins == pins
    for text in (f"x@{one},x@{other}", "x@abc", "x"):
        monkeypatch.setenv("CALIBRANT_BUNDLE_PINS", text)
        with pytest.raises(ValidationError, match="NAME@SHA256"):
            Settings()


def test_the_documented_default_is_the_default() -> None:
    """docs/settings.md states the default of every setting."""
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    documented = dict(re.findall(r"^\| `CALIBRANT_(\w+)` \| (.+?) \|", text, re.MULTILINE))

    assert documented.keys() == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown = documented[name.upper()].strip("`")
        if name == "state_dir":
            assert Path(shown).expanduser() == field.get_default(call_default_factory=True)
        elif field.default in ((), ""):
            assert shown == "none"
        elif isinstance(field.default, tuple):
            assert shown == ", ".join(map(str, field.default))
        elif isinstance(field.default, float):
            assert float(shown) == field.default
        else:
            assert shown == str(field.default).lower()


def test_the_database_is_sqlite_or_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty address means SQLite, as compose files need it; no representation shows the password."""
    for value in ("", None):
        if value is not None:
            monkeypatch.setenv("CALIBRANT_DATABASE_URL", value)
        assert Settings.read().postgresql_url is None

    monkeypatch.setenv("CALIBRANT_DATABASE_URL", "postgresql://user:secret@host/jobs")
    assert Settings.read().postgresql_url == "postgresql://user:secret@host/jobs"
    assert "user:secret" not in repr(Settings.read())


def test_another_database_is_refused_without_repeating_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message only says what is expected, because an address may hold a password."""
    monkeypatch.setenv("CALIBRANT_DATABASE_URL", "mysql://user:secret@host/jobs")

    with pytest.raises(SettingsError, match="expected postgresql://") as caught:
        Settings.read()

    assert "secret" not in "".join(traceback.format_exception(caught.value))
    assert "CALIBRANT_DATABASE_URL" in str(caught.value)


@pytest.mark.parametrize("secret", ["short", "x" * 21, "with/a/slash/and-22-letters", "x" * 21 + "\u00e9", " " * 30])
def test_a_secret_that_can_be_guessed_or_breaks_a_path_is_refused(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    """The message says what is expected and does not repeat the secret."""
    monkeypatch.setenv("CALIBRANT_MONAILABEL_SECRET", secret)

    with pytest.raises(SettingsError, match=r"CALIBRANT_MONAILABEL_SECRET .*at least 22 letters") as caught:
        Settings.read()

    assert secret not in str(caught.value)


def test_a_secret_is_shown_nowhere_but_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing the settings hides the secret; an empty variable means none."""
    monkeypatch.setenv("CALIBRANT_MONAILABEL_SECRET", "Abc_-" * 5)
    assert Settings.read().monailabel_path == "Abc_-" * 5
    assert "Abc_-" not in repr(Settings.read())

    monkeypatch.setenv("CALIBRANT_MONAILABEL_SECRET", "")
    assert Settings.read().monailabel_path is None


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("", ()),
        ("http://localhost:3000", ("http://localhost:3000",)),
        ("https://a.example, http://[::1]:3000", ("https://a.example", "http://[::1]:3000")),
    ],
)
def test_origins_stand_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, given: str, origins: tuple[str, ...]
) -> None:
    """Origins are separated by commas."""
    monkeypatch.setenv("CALIBRANT_MONAILABEL_ORIGINS", given)
    assert Settings.read().monailabel_origins == origins


@pytest.mark.parametrize("given", ["*", "https://*.example", "https://a.example/", "a.example", "null"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """Patterns are refused, because they would match every page."""
    monkeypatch.setenv("CALIBRANT_MONAILABEL_ORIGINS", given)
    with pytest.raises(SettingsError, match="CALIBRANT_MONAILABEL_ORIGINS"):
        Settings.read()


@pytest.mark.parametrize("given", ["calibrant", "/calibrant/", "//x", "/a/../b", "/a b", "/.."])
def test_what_is_no_prefix_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """A prefix begins with a slash and ends without one."""
    monkeypatch.setenv("CALIBRANT_ROOT_PATH", given)
    with pytest.raises(SettingsError, match="CALIBRANT_ROOT_PATH"):
        Settings.read()


def test_trusted_proxies_are_addresses_or_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses and networks are separated by commas; a name is refused, because whoever answers for it would be trusted."""
    monkeypatch.setenv("CALIBRANT_TRUSTED_PROXIES", "10.0.0.7, 172.18.0.0/16,::1")
    assert [str(network) for network in Settings.read().trusted_proxies] == ["10.0.0.7/32", "172.18.0.0/16", "::1/128"]
    monkeypatch.setenv("CALIBRANT_TRUSTED_PROXIES", "proxy.example")
    with pytest.raises(SettingsError, match="CALIBRANT_TRUSTED_PROXIES"):
        Settings.read()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CALIBRANT_STATEDIR", "Did you mean CALIBRANT_STATE_DIR"),
        ("CALIBRANT_RETENTION", "Did you mean CALIBRANT_RETENTION_DAYS"),
        ("CALIBRANT_XYZ", "There is no setting CALIBRANT_XYZ. Remove"),
    ],
)
def test_f15_a_variable_that_would_be_ignored_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    """A misspelt setting ends the start with the nearest name; its value is not repeated."""
    monkeypatch.setenv(name, "secret-value")

    with pytest.raises(SettingsError) as caught:
        Settings.read()

    assert says in caught.value.detail
    assert "secret-value" not in caught.value.detail


def test_variables_of_other_parts_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's key, the tests' data and variables without the prefix stop no service."""
    for name in ("CALIBRANT_DATA", "CALIBRANT_KEY", "CALIBRANT", "XCALIBRANT_Y"):
        monkeypatch.setenv(name, "x")

    Settings.read()


def test_a_provider_needs_an_audience_and_an_encrypted_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an audience, tokens that were made for other services would be accepted."""
    monkeypatch.setenv("CALIBRANT_OIDC_ISSUER", "https://login.example")
    with pytest.raises(SettingsError, match="needs CALIBRANT_OIDC_AUDIENCE"):
        Settings.read()
    monkeypatch.setenv("CALIBRANT_OIDC_AUDIENCE", "calibrant")
    monkeypatch.setenv("CALIBRANT_KEYS_FILE", "/k.json")
    assert Settings.read().oidc_issuer == "https://login.example"
    monkeypatch.setenv("CALIBRANT_OIDC_ISSUER", "http://login.example")
    with pytest.raises(SettingsError, match="CALIBRANT_OIDC_ISSUER"):
        Settings.read()
