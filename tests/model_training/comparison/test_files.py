from pathlib import Path

import pytest

from model_training.comparison.files import pack, read_json, run_files

JSON = b'{"fold":"fold1","cases":[' + b"0.125," * 1000 + b"1]}\n"


def test_a_packed_file_holds_the_plain_one(tmp_path: Path) -> None:
    """The content is the same byte for byte, in a fraction of the space; the plain file is removed."""
    plain = tmp_path / "a-fold1-seed0.json"
    plain.write_bytes(JSON)

    packed = pack(plain)

    assert packed == tmp_path / "a-fold1-seed0.json.xz"
    assert read_json(packed) == JSON
    assert packed.stat().st_size < len(JSON) / 10
    assert not plain.exists()


def test_packing_is_reproducible(tmp_path: Path) -> None:
    """The same run gives the same bytes, whatever the name of its file."""
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_bytes(JSON)

    first, second = (pack(tmp_path / name).read_bytes() for name in ("a.json", "b.json"))

    assert first == second


def test_each_run_is_listed_once(tmp_path: Path) -> None:
    """Plain and packed runs are sorted by name; if a run has both files, the plain one counts."""
    for name in ("b.json", "a.json", "c.json"):
        (tmp_path / name).write_bytes(JSON)
    pack(tmp_path / "a.json")
    pack(tmp_path / "b.json")
    (tmp_path / "b.json").write_bytes(JSON)

    assert [path.name for path in run_files(tmp_path)] == ["a.json.xz", "b.json", "c.json"]


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    """A truncated file is refused, and the message names it."""
    (tmp_path / "a.json").write_bytes(JSON)
    packed = pack(tmp_path / "a.json")
    packed.write_bytes(packed.read_bytes()[:-10])

    with pytest.raises(ValueError, match=r"a\.json\.xz is not a whole xz file"):
        read_json(packed)
