import hashlib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from service.commands.batch.case import BatchCase, sha256_of


def test_results_are_named_by_case_and_model() -> None:
    """BIDS only allows letters and digits in a value, so that the model's hyphens and hash are dropped."""
    files = BatchCase.of_file("a", Path("a.nii")).results(Path("out"), "tiny-model@0123")

    assert files.mask == Path("out/a/a_seg-tinymodel_dseg.nii.gz")


def test_a_scan_is_opened_where_it_lies() -> None:
    """The scan is not copied."""
    with BatchCase.of_file("a", Path("a.nii")).opened() as path:
        assert path == Path("a.nii")


def test_a_series_is_one_zip_the_same_bytes_each_time(tmp_path: Path) -> None:
    """The zip is reproducible, so that its hash identifies the series; it is temporary."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_text(path.name)
    case = BatchCase("s", tuple(paths), PurePosixPath("s"), "s", is_series=True)
    hashes = []
    for _ in range(2):
        with case.opened() as path:
            hashes.append(sha256_of(path))
            with zipfile.ZipFile(path) as archive:
                assert [archive.read(name) for name in archive.namelist()] == [b"one", b"two"]
        paths[0].touch()
        assert not path.exists()

    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("content", [b"", b"voxels" * 300_000])
def test_the_hash_is_that_of_the_bytes(tmp_path: Path, content: bytes) -> None:
    """The hash equals that of hashlib over the whole content."""
    (tmp_path / "f").write_bytes(content)

    assert sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()
