import hashlib
import hmac
import json
import os
import stat
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.storage import keys
from service.storage.keys import Keys, Owner, add_key, read_keys, remove_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path for a file of keys, in a folder that does not exist yet."""
    return tmp_path / "etc" / "keys.json"


def test_a_key_names_its_owner(path: Path) -> None:
    """A key from add_key is recognised, with admin rights only if granted."""
    lab, admin = add_key(path, "radiology-lab", admin=False), add_key(path, "root", admin=True)
    known = Keys(path)

    assert known.owner_of(lab) == Owner("radiology-lab", admin=False, key=lab.split("_")[1])
    assert known.owner_of(admin) == Owner("root", admin=True, key=admin.split("_")[1])
    assert [(key.owner, key.admin) for key in read_keys(path)] == [("radiology-lab", False), ("root", True)]


def test_an_owner_may_have_several_keys(path: Path) -> None:
    """All keys of an owner are valid, so keys can be rotated without a gap."""
    first, second = add_key(path, "lab", admin=False), add_key(path, "lab", admin=False)

    owners = [Keys(path).owner_of(key) for key in (first, second)]

    assert first != second
    assert [owner.name for owner in owners if owner] == ["lab", "lab"]


def test_the_file_holds_no_secret(path: Path) -> None:
    """It holds only the SHA-256 of the secret and is readable only by its user, even after a crash."""
    path.parent.mkdir()
    (path.parent / ".keys.json.part").write_text("left")
    (path.parent / ".keys.json.part").chmod(0o666)
    key = add_key(path, "lab", admin=False)
    _, identifier, secret = key.split("_", 2)

    text = path.read_text()

    assert secret not in text
    (entry,) = json.loads(text)["keys"]
    assert entry["id"] == identifier
    assert entry["sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert len(secret) >= 43  # 256 bits in base64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_the_mode_does_not_depend_on_the_umask(path: Path, umask: int) -> None:
    """The file is never readable by others, even if it was before, and its owner can write it."""
    path.parent.mkdir()
    path.write_text('{"keys": []}')
    path.chmod(0o644)
    before = os.umask(umask)
    try:
        add_key(path, "lab", admin=False)
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "presented",
    [
        "",
        "_",
        "__",
        "cal",
        "cal_",
        "cal__",
        "cal_{id}",
        "cal_{id}_",
        "cal_{id}_{secret}x",
        "cal_{id}_{secret} ",
        "CAL_{id}_{secret}",
        "cal_000000000000_{secret}",
        "cal_{id}_" + "A" * 43,
        "{secret}",
        "Bearer cal_{id}_{secret}",
        "cal_{id}_{sha256}",
        "cal_{id}_" + "x" * 1_000_000,
        "cal_" + "0" * 1_000_000 + "_{secret}",
        "cal_{id}_sch\u00f6n \U0001f9e0",
        "cal_\u00fc_{secret}",
        "\x00",
    ],
)
def test_an_invalid_key_has_no_owner(path: Path, presented: str) -> None:
    """Partial, foreign, hashed, very long and non-ASCII keys give None, never an error."""
    _, identifier, secret = add_key(path, "lab", admin=False).split("_", 2)
    sha256 = hashlib.sha256(secret.encode()).hexdigest()

    assert Keys(path).owner_of(presented.format(id=identifier, secret=secret, sha256=sha256)) is None


def test_the_secret_of_one_key_is_not_valid_for_another(path: Path) -> None:
    """Id and secret belong together."""
    first, second = (add_key(path, name, admin=False).split("_", 2) for name in ("one", "two"))

    assert Keys(path).owner_of(f"cal_{first[1]}_{second[2]}") is None


@pytest.mark.parametrize("known", [True, False])
def test_secrets_are_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
    """hmac.compare_digest is called once with two full SHA-256, whether the id is known or not."""
    compared: list[tuple[str, str]] = []

    def compare(first: str, second: str) -> bool:
        compared.append((first, second))
        return hmac.compare_digest(first, second)

    key = add_key(path, "lab", admin=False)
    monkeypatch.setattr(keys, "hmac", type("hmac", (), {"compare_digest": staticmethod(compare)}))

    assert (Keys(path).owner_of(key if known else key.replace("cal_", "cal_0", 1)) is not None) == known

    assert [(len(first), len(second)) for first, second in compared] == [(64, 64)]


def test_an_empty_secret_is_refused(path: Path) -> None:
    """The placeholder hash for an unknown id is that of an empty secret, which is refused all the same."""
    add_key(path, "lab", admin=False)

    assert Keys(path).owner_of("cal_ffffffffffff_") is None


def test_changes_take_effect_without_a_restart(path: Path) -> None:
    """An added key is valid and a removed key is invalid at once, a hundred times in a row."""
    add_key(path, "first", admin=False)
    known = Keys(path)
    for number in range(100):
        key = add_key(path, f"owner-{number}", admin=False)
        identifier = key.split("_")[1]
        assert known.owner_of(key) is not None
        assert known.holds(identifier)

        assert remove_key(path, identifier)

        assert known.owner_of(key) is None
        assert not known.holds(identifier)


def test_a_key_that_is_not_there_cannot_be_removed(path: Path) -> None:
    """The result is False, nothing is written, and the other keys stay."""
    assert not remove_key(path, "0" * 12)
    assert not path.exists()
    key = add_key(path, "lab", admin=False)

    assert not remove_key(path, "0" * 12)

    assert Keys(path).owner_of(key) is not None


@pytest.mark.parametrize("owner", ["", "Lab", "a b", "..", "../x", "-a", "a_b", "a" * 64, "l\u00e4b", "a\n"])
def test_an_owner_s_name_must_be_a_safe_folder_name(path: Path, owner: str) -> None:
    """Only lower-case letters, digits and hyphens are allowed."""
    with pytest.raises(SettingsError, match="1 to 63 lower-case letters"):
        add_key(path, owner, admin=False)

    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"keys": 1}', '{"keys": [{}]}', '{"keys": [], "more": 1}', "\x00\xff"],
)
def test_an_invalid_file_of_keys_is_refused(path: Path, content: str) -> None:
    """Reading it fails, and adding a key does not overwrite it."""
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")

    for act in (lambda: Keys(path), lambda: add_key(path, "lab", admin=False)):
        with pytest.raises(SettingsError, match="is not a file of keys"):
            act()

    assert path.read_text(encoding="latin-1") == content


def test_a_missing_file_is_an_error(path: Path) -> None:
    """The message names the command that creates the file."""
    with pytest.raises(SettingsError, match="calibrant keys add OWNER"):
        Keys(path)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """An unwritable folder gives a SettingsError."""
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match="cannot be written"):
        add_key(tmp_path / "file" / "keys.json", "lab", admin=False)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")], ids=["removed", "damaged"])
def test_without_a_readable_file_no_key_is_valid(path: Path, damage: object) -> None:
    """A file that vanishes or breaks at run time makes all keys invalid without an error, until it is restored."""
    key = add_key(path, "lab", admin=False)
    content, known = path.read_bytes(), Keys(path)
    damage(path)  # type: ignore[operator]

    assert known.owner_of(key) is None
    assert not known.holds(key.split("_")[1])

    path.write_bytes(content)
    assert known.owner_of(key) is not None


def test_a_key_keeps_its_scopes(path: Path) -> None:
    """A key has those it was made with; an administrator's has all, and so has one of an earlier version's file."""
    read = add_key(path, "viewer", admin=False, scopes=frozenset({"read"}))
    both = add_key(path, "lab", admin=False)
    admin = add_key(path, "root", admin=True, scopes=frozenset({"read"}))
    document = json.loads(path.read_text())
    assert document["keys"][0]["scopes"] == ["read"]
    del document["keys"][1]["scopes"]
    path.write_text(json.dumps(document))

    owners = [Keys(path).owner_of(key) for key in (read, both, admin)]
    assert [sorted(owner.scopes) for owner in owners if owner] == [["read"], ["read", "submit"], ["read", "submit"]]
