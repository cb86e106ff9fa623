"""Batches as a user runs them: killed, interrupted and gone on with, against a server that dies, with a bad file.

What they write of the whole test set is compared in test_identical.py.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from model_training.data.layouts.msd import read_msd
from service.bundle.registry import DEFAULT_MODEL
from service.commands.predict import predict_here

CASES = 8
CALIBRANT = [sys.executable, "-m", "service"]


@pytest.fixture
def scans(hippocampus: Path, tmp_path: Path) -> Path:
    """Return a folder of eight real test cases."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for case in read_msd(hippocampus, str)["test"][:CASES]:
        shutil.copy(case.images[0], folder)
    return folder


@cache
def predicted(name: str, content: bytes) -> dict[str, bytes]:
    """Return the files that `calibrant predict` writes for a scan; the same scan is computed once."""
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / f"{name}.nii.gz"
        scan.write_bytes(content)
        files = predict_here(scan, Path(folder), None)
        return {kind: getattr(files, kind).read_bytes() for kind in ("mask", "confidence", "summary")}


def batch(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Return a batch that was run to its end."""
    command = [*CALIBRANT, "batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def lines(out: Path) -> list[dict[str, Any]]:
    """Return what the logs hold, as JSON alone reads it."""
    found = []
    for log in sorted((out / "logs").glob("batch*.jsonl")):
        for text in log.read_text().splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
    return found


def run_until(count: int, out: Path, *arguments: str | Path, send: int = signal.SIGKILL) -> str:
    """Run a batch until so many cases are recorded, send it a signal as a terminal or a scheduler would, return its words."""
    command = [*CALIBRANT, "batch", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while len(lines(out)) < count and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "the batch ended before it could be interrupted"
        if send == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, send)
        assert process.stdout is not None
        words = process.stdout.read()
        process.wait(timeout=60)
        assert process.returncode == (-signal.SIGKILL if send == signal.SIGKILL else 130)
    return words


def check(out: Path, scans: Path) -> None:
    """Compare every case with `calibrant predict`, byte for byte, and with what log, sidecar and tables say."""
    with (out / "cases.csv").open() as file:
        table = {row["id"]: row for row in csv.DictReader(file)}
    names = sorted(path.name.removesuffix(".nii.gz") for path in scans.glob("*.nii.gz"))
    assert sorted(table) == names
    for name in names:
        scan = (scans / f"{name}.nii.gz").read_bytes()
        expected = predicted(name, scan)
        stem = out / name / f"{name}_seg-hippocampusmr"
        mask = Path(f"{stem}_dseg.nii.gz")
        assert mask.read_bytes() == expected["mask"]
        assert Path(f"{stem}_desc-confidence_probseg.nii.gz").read_bytes() == expected["confidence"]
        sidecar = json.loads(Path(f"{stem}_dseg.json").read_text())
        digest = hashlib.sha256(scan).hexdigest()
        assert (table[name]["state"], table[name]["input_sha256"], sidecar["InputSHA256"]) == (
            "succeeded",
            digest,
            digest,
        )
        assert table[name]["model"] == sidecar["Model"]
        assert sidecar["Model"].startswith(f"{DEFAULT_MODEL}@")
        assert sidecar["Summary"] == json.loads(expected["summary"])
        image = nib.Nifti1Image.from_filename(mask)
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        with (out / "structures.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["id"] == name]
        for row in rows:
            voxels = int((np.asarray(image.dataobj) == int(row["label"])).sum())
            assert int(row["voxels"]) == voxels
            assert not row["volume_ml"] or float(row["volume_ml"]) == pytest.approx(voxels * voxel_ml)
        assert len(rows) == 2
    assert not list(out.rglob("*.part"))


@contextmanager
def serve(state: Path, port: int) -> Iterator["subprocess.Popen[str]"]:
    """Yield a running `calibrant serve` that is ready."""
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(state)}
    command = [*CALIBRANT, "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert any(" listens at " in line for line in process.stdout)
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def port() -> int:
    """Return a free port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        found: int = listener.getsockname()[1]
        return found


def test_a_batch_killed_twice_repeats_and_loses_nothing(scans: Path, tmp_path: Path) -> None:
    """SIGKILL after two and after five cases: every case is recorded once, and what is there is what predict writes."""
    out = tmp_path / "out"
    run_until(2, out, scans, "-o", out, "--local")
    recorded = lines(out)
    with (out / "logs" / "batch.jsonl").open("a") as log:
        log.write('{"case": "half a li')
    run_until(5, out, scans, "-o", out, "--local")
    last = batch(scans, "-o", out, "--local")

    assert last.returncode == 0, last.stdout + last.stderr
    found = lines(out)
    assert found[: len(recorded)] == recorded
    assert Counter(line["case"] for line in found) == {path.name.removesuffix(".nii.gz"): 1 for path in scans.iterdir()}
    assert last.stdout.count("done before") >= 5
    check(out, scans)


def test_an_interrupted_batch_finishes_the_running_case(scans: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal, yet nothing fails: 130, and the command that goes on is printed."""
    out = tmp_path / "out"
    words = run_until(1, out, scans, "-o", out, "--local", send=signal.SIGINT)

    assert "Interrupted: the cases in flight are finished first" in words
    assert f"Go on with: calibrant batch {scans} -o {out} --local" in words
    found = lines(out)
    assert {line["state"] for line in found} == {"succeeded"}
    assert 1 <= len(found) < CASES
    assert batch(scans, "-o", out, "--local").returncode == 0
    assert Counter(line["case"] for line in lines(out)).most_common(1)[0][1] == 1


def test_a_batch_outlives_its_server(scans: Path, tmp_path: Path, port: int) -> None:
    """Killed itself after two cases; then its server is killed and started anew: nothing is repeated, lost or wrong."""
    out, state, url = tmp_path / "out", tmp_path / "state", f"http://127.0.0.1:{port}"
    arguments: list[str | Path] = [scans, "-o", out, "--url", url, "--jobs", "3"]
    with serve(state, port):
        run_until(2, out, *arguments)
        before = lines(out)
        command = [*CALIBRANT, "batch", *map(str, arguments)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while len(lines(out)) < len(before) + 1 and running.poll() is None:
            time.sleep(0.01)
    with serve(state, port):
        words, _ = running.communicate(timeout=120)

        assert running.returncode == 0, words
        assert Counter(line["case"] for line in lines(out)).most_common(1)[0][1] == 1
        assert len(lines(out)) == CASES
        check(out, scans)


def test_exit_codes_tell_how_a_batch_went(scans: Path, tmp_path: Path) -> None:
    """One bad file among good ones is 4, and the others are done; only bad ones 5; none at all 6; no server 3."""
    for path in sorted(scans.iterdir())[2:]:
        path.unlink()
    good = {path.name.removesuffix(".nii.gz") for path in scans.iterdir()}
    (scans / "a-bad.nii.gz").write_bytes(b"no scan")
    some = batch(scans, "-o", tmp_path / "some", "--local")
    (tmp_path / "bad").mkdir()
    shutil.copy(scans / "a-bad.nii.gz", tmp_path / "bad")
    every = batch(tmp_path / "bad", "-o", tmp_path / "every", "--local")
    (tmp_path / "empty").mkdir()

    assert some.returncode == 4
    assert {line["case"] for line in lines(tmp_path / "some") if line["state"] == "succeeded"} == good
    (failed,) = (line for line in lines(tmp_path / "some") if line["state"] == "failed")
    assert failed["problem"]["type"] == "/problems/unrecognised-format"
    assert every.returncode == 5
    assert batch(tmp_path / "empty", "-o", tmp_path / "none", "--local").returncode == 6
    gone = batch(scans, "-o", tmp_path / "gone", "--url", "http://127.0.0.1:1")
    assert (gone.returncode, gone.stderr.count("\n")) == (3, 1)
    assert not (tmp_path / "gone").exists()


def test_shards_share_a_folder(scans: Path, tmp_path: Path) -> None:
    """Two shards at once do each case once, and the table that is left holds all of them."""
    out = tmp_path / "out"
    commands = [[*CALIBRANT, "batch", str(scans), "-o", str(out), "--local", "--shard", f"{i}/2"] for i in (1, 2)]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]

    assert [process.wait(timeout=120) for process in running] == [0, 0]
    assert {log.name for log in (out / "logs").iterdir()} == {"batch-1-of-2.jsonl", "batch-2-of-2.jsonl"}
    assert Counter(line["case"] for line in lines(out)).most_common(1)[0][1] == 1
    check(out, scans)
