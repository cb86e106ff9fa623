import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from service.commands.batch.case import BatchCase
from service.commands.batch.results import Segmented, describe_folder, write_results, write_whole
from service.schemas import RESEARCH_USE_ONLY, Summary


def test_every_file_is_there_and_named_in_the_record(tmp_path: Path, summary: Summary) -> None:
    """There are mask, map, label table and two sidecars with bundle, input, software and notice."""
    case = BatchCase.of_file("a", Path("a.nii"))
    hashes, sidecar = write_results(tmp_path, case, "ab" * 32, Segmented(b"M", b"C", summary))
    stem = "a/a_seg-tinymodel"

    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(hashes)
    assert set(hashes) == {
        *(f"{stem}_dseg{suffix}" for suffix in (".nii.gz", ".json", ".tsv")),
        *(f"{stem}_desc-confidence_probseg{suffix}" for suffix in (".nii.gz", ".json")),
    }
    assert all(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest for name, digest in hashes.items())
    assert (tmp_path / f"{stem}_dseg.nii.gz").read_bytes() == b"M"
    assert (tmp_path / f"{stem}_dseg.tsv").read_text() == "index\tname\n0\tbackground\n1\tfront\n2\tback\n"
    assert sidecar == f"{stem}_dseg.json"
    for name in (sidecar, f"{stem}_desc-confidence_probseg.json"):
        content = json.loads((tmp_path / name).read_text())
        assert (content["Model"], content["InputSHA256"]) == (summary.model, "ab" * 32)
        assert (content["ResearchUseOnly"], content["SpatialReference"]) == (RESEARCH_USE_ONLY, "orig")
        assert content["Software"].startswith("Calibrant ")
    assert Summary.model_validate(json.loads((tmp_path / sidecar).read_text())["Summary"]) == summary


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves the earlier file and no other."""
    write_whole(tmp_path / "f", b"before")

    def fail(path: Path, content: bytes) -> None:
        path.write_bytes(content[:2])
        raise OSError(28, "No space left")

    monkeypatch.setattr("service.commands.batch.results.write_durably", fail)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "f", b"after")

    assert (tmp_path / "f").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_batch_left_half_written_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files of dead processes on this machine are removed, those of living ones are kept."""

    def die(path: Path, content: bytes) -> None:
        path.write_bytes(content)
        os._exit(9)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr("service.commands.batch.results.write_durably", die)
        write_whole(tmp_path / "f", b"half")
    os.waitpid(child, 0)
    (dead,) = tmp_path.iterdir()
    alive = tmp_path / dead.name.replace(f".{child}-", f".{os.getppid()}-")
    alive.touch()
    write_whole(tmp_path / "f", b"whole")

    assert {path.name for path in tmp_path.iterdir()} == {"f", alive.name}


def test_the_tree_is_valid_bids(tmp_path: Path, summary: Summary, write_nifti: Callable[..., None]) -> None:
    """The BIDS validator, an independent program, finds no error in the derivatives."""
    import numpy as np

    validator = shutil.which("bids-validator-deno", path=str(Path(sys.executable).parent))
    if validator is None:
        pytest.skip("bids-validator-deno is not installed")
    write_nifti(tmp_path / "m.nii.gz", np.zeros((4, 5, 6), np.uint8))
    image = (tmp_path / "m.nii.gz").read_bytes()
    out = tmp_path / "out"
    describe_folder(out)
    for session in ("ses-1", "ses-2"):
        stem = f"sub-1_{session}_acq-x_space-orig"
        case = BatchCase(stem, (Path("a.nii"),), PurePosixPath(f"sub-1/{session}/anat"), stem)
        write_results(out, case, "ab" * 32, Segmented(image, image, summary))
    (out / "logs").mkdir()
    (out / "logs" / "batch.jsonl").touch()
    (out / "cases.csv").touch()

    validation = subprocess.run([validator, str(out)], capture_output=True, text=True, check=False)
    assert validation.returncode == 0, validation.stdout

    next(out.rglob("*_dseg.json")).write_text("{}")
    assert subprocess.run([validator, str(out)], capture_output=True, check=False).returncode != 0
