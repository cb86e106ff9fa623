"""Every way in gives the masks that `calibrant evaluate` measures: curl, plain httpx, batch through a service, batch here.

On all test cases: 47 of the real data. Each client runs once, as a user runs it; the tables of the batches are computed again from the
files by nibabel and numpy alone, and from the table of evaluate.
"""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

import model_training.evaluation.evaluate
from model_training import cli
from model_training.data.case import Case
from model_training.data.layouts.msd import read_msd
from service.bundle.registry import DEFAULT_MODEL, SHIPPED

N_CLASSES = 3
CODE = 1 / 255
"""Step of a confidence map."""

CALIBRANT = [sys.executable, "-m", "service"]
HTTPX_SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "segment_with_httpx.py"
BUNDLE = SHIPPED / DEFAULT_MODEL


@dataclass(frozen=True)
class Setting:
    """What the clients are given; equal for all tests of this file, so that each client runs once."""

    url: str
    data: Path
    work: Path

    @property
    def cases(self) -> list[Case]:
        """The labelled test cases."""
        return read_msd(self.data, str)["test"]


@dataclass(frozen=True)
class Files:
    """What a client left of a case."""

    mask: Path
    confidence: Path
    summary: Path


Client = Callable[[Setting], dict[str, Files]]
"""Segments the cases and returns what was made of each, by its name."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all clients share."""
    return tmp_path_factory.mktemp("clients")


@pytest.fixture
def setting(url: str, hippocampus: Path, work: Path) -> Setting:
    """Return the running service, the data and the folder."""
    return Setting(url, hippocampus, work)


def run(*command: str | Path) -> bytes:
    """Return what a command prints that must succeed."""
    found = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    assert found.returncode == 0, (found.stdout + found.stderr).decode()
    return found.stdout


@cache
def by_curl(setting: Setting) -> dict[str, Files]:
    """One request after the other, as in the README."""
    found = {}
    for case in setting.cases:
        out = setting.work / "curl" / case.name
        out.mkdir(parents=True)
        found[case.name] = Files(out / "mask.nii.gz", out / "confidence.nii.gz", out / "summary.json")
        post = ("-H", "Prefer: wait=60", "--data-binary", f"@{case.images[0]}", f"{setting.url}/v1/segmentations")
        links = json.loads(run("curl", "-sS", *post))["links"]
        for name in ("mask", "confidence", "summary"):
            run("curl", "-sS", "--fail", "-o", getattr(found[case.name], name), setting.url + links[name])
    return found


@cache
def by_httpx(setting: Setting) -> dict[str, Files]:
    """The script of docs/client.md on a folder of the scans."""
    scans, out = setting.work / "scans", setting.work / "httpx"
    scans.mkdir()
    for case in setting.cases:
        shutil.copy(case.images[0], scans)
    run(sys.executable, HTTPX_SCRIPT, scans, out, setting.url)
    return {
        case.name: Files(folder / "mask.nii.gz", folder / "confidence.nii.gz", folder / "summary.json")
        for case in setting.cases
        for folder in [out / case.images[0].name]
    }


@cache
def by_batch(setting: Setting) -> dict[str, Files]:
    """`calibrant batch` through the service."""
    return batch(setting, "remote", "--url", setting.url)


@cache
def by_local_batch(setting: Setting) -> dict[str, Files]:
    """`calibrant batch` without a service."""
    return batch(setting, "local", "--local")


def batch(setting: Setting, name: str, *where: str) -> dict[str, Files]:
    """Run a batch on a CSV file that names the references, too."""
    source, out = setting.work / f"{name}.csv", setting.work / name
    with source.open("w", newline="") as file:
        rows = ((case.name, case.images[0], case.label) for case in setting.cases)
        csv.writer(file).writerows([("id", "path", "reference"), *rows])
    run(*CALIBRANT, "batch", source, "-o", out, *where)
    stems = {case.name: out / case.name / f"{case.name}_seg-hippocampusmr" for case in setting.cases}
    return {
        name: Files(
            Path(f"{stem}_dseg.nii.gz"), Path(f"{stem}_desc-confidence_probseg.nii.gz"), Path(f"{stem}_dseg.json")
        )
        for name, stem in stems.items()
    }


@cache
def evaluated(setting: Setting) -> tuple[dict[str, npt.NDArray[np.uint8]], list[dict[str, str]]]:
    """Return the masks from which `calibrant evaluate` computes its figures, by case, and the table that it writes."""
    masks = {}
    predictions = model_training.evaluation.evaluate.predictions

    def noting(*arguments: Any) -> list[model_training.evaluation.evaluate.CasePrediction]:  # noqa: ANN401 - as they come
        found = predictions(*arguments)
        masks.update({prediction.case.name: prediction.mask_DHW for prediction in found})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_training.evaluation.evaluate, "predictions", noting)
        # The table alone is compared here: pictures of every case would take longer than all clients together.
        patch.setattr("model_training.evaluation.results._write_images", lambda *_: None)
        patch.setattr("model_training.evaluation.report.write_report", lambda path, _: path)
        cli.evaluate(BUNDLE, setting.data, "hippocampus", "test", setting.work / "report")
    return masks, rows_of(setting.work / "report" / "cases.csv")


def rows_of(table: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def voxels(path: Path) -> npt.NDArray[np.floating]:
    """Return the numbers of an image as nibabel reads them."""
    return nib.Nifti1Image.from_filename(path).get_fdata()


def summary_of(files: Files) -> dict[str, Any]:
    """Return a summary; a batch keeps it in the mask's sidecar."""
    document = json.loads(files.summary.read_bytes())
    return dict(document.get("Summary", document))


needs_curl = pytest.mark.skipif(not shutil.which("curl") and not os.environ.get("CI"), reason="curl is not installed")


@pytest.mark.parametrize(
    "client", [pytest.param(by_curl, marks=needs_curl), by_httpx, by_batch, by_local_batch], ids=lambda c: c.__name__
)
def test_a_client_gives_the_masks_of_evaluate(setting: Setting, client: Client) -> None:
    """Voxel by voxel and on the scan's own grid; the confidence is the same file whichever way it came.

    The figures of the statement are those that the card has of the engine that ran.
    """
    masks, _ = evaluated(setting)
    statement = httpx.get(f"{setting.url}/v1/models/{DEFAULT_MODEL}").json()["statement"]
    card = json.loads((BUNDLE / "calibration.json").read_bytes())
    figures = {(each["engine"], each["precision"]): each["scores"] for each in card["measurements"]}
    found, reference = client(setting), by_local_batch(setting)
    assert found.keys() == masks.keys() == {case.name for case in setting.cases}
    for case in setting.cases:
        files = found[case.name]
        scan, mask = nib.Nifti1Image.from_filename(case.images[0]), nib.Nifti1Image.from_filename(files.mask)
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(mask.dataobj), masks[case.name], err_msg=case.name)
        confidence = nib.Nifti1Image.from_filename(files.confidence)
        for image in (mask, confidence):
            assert image.shape == scan.shape
            np.testing.assert_array_equal(image.affine, scan.affine)
        assert 1 / N_CLASSES <= confidence.get_fdata().min() <= confidence.get_fdata().max() <= 1
        assert files.confidence.read_bytes() == reference[case.name].confidence.read_bytes()
        assert summary_of(files) == summary_of(reference[case.name])
        said = summary_of(files)["statement"]
        withdrawn = said["status"] == "withdrawn"  # as of a drawn scan
        assert said["figures"] == (None if withdrawn else figures[said["engine"], said["precision"]])
        of_this_scan = {"p", "n_compared", "not_compared", "features"} | ({"status", "reasons"} if withdrawn else set())
        alike = said.keys() - {"figures", "text", "engine", "precision"} - of_this_scan
        assert {key: said[key] for key in alike} == {key: statement[key] for key in alike}


@pytest.mark.parametrize("client", [by_batch, by_local_batch], ids=lambda c: c.__name__)
def test_the_cohort_table_is_what_the_files_say(setting: Setting, client: Client) -> None:
    """A row per case: scan and model by their hashes; volume and mean confidence are those of the files."""
    found = client(setting)
    identity = f"{DEFAULT_MODEL}@{hashlib.sha256((BUNDLE / 'MANIFEST.json').read_bytes()).hexdigest()}"
    table = {row["id"]: row for row in rows_of(out_of(found) / "cases.csv")}
    assert table.keys() == {case.name for case in setting.cases}
    for case in setting.cases:
        row, files = table[case.name], found[case.name]
        assert (row["state"], row["model"], row["problem"]) == ("succeeded", identity, "")
        assert row["input_sha256"] == hashlib.sha256(case.images[0].read_bytes()).hexdigest()
        assert out_of(found) / row["mask"] == files.mask
        mask = voxels(files.mask)
        if cut_off(mask, 1) or cut_off(mask, 2):
            assert row["volume_ml"] == ""
        else:
            assert float(row["volume_ml"]) == pytest.approx((mask > 0).sum() * voxel_ml(files.mask))
        mean = voxels(files.confidence)[mask > 0].mean()
        assert float(row["mean_confidence"]) == pytest.approx(mean, abs=CODE / 2)


@pytest.mark.parametrize("client", [by_batch, by_local_batch], ids=lambda c: c.__name__)
def test_the_structures_are_those_of_the_files_and_of_evaluate(setting: Setting, client: Client) -> None:
    """Two rows a case: voxels, volume and confidence are those of the files, the DSC that of evaluate and of its definition."""
    found, (_, measured) = client(setting), evaluated(setting)
    table = rows_of(out_of(found) / "structures.csv")
    assert len(table) == len(measured) == 2 * len(setting.cases)
    theirs = {(row["case"], row["structure"]): row for row in measured}
    labels = {case.name: voxels(case.label) for case in setting.cases}
    for row in table:
        files, label = found[row["id"]], int(row["label"])
        mask, true = voxels(files.mask) == label, labels[row["id"]] == label
        assert int(row["voxels"]) == mask.sum()
        assert (row["truncated"] == "True") == cut_off(mask, 1)
        if row["volume_ml"]:
            assert float(row["volume_ml"]) == pytest.approx(mask.sum() * voxel_ml(files.mask))
        assert bool(row["volume_ml"]) != cut_off(mask, 1)
        confidence = voxels(files.confidence)[mask]
        assert float(row["mean_confidence"]) == pytest.approx(confidence.mean(), abs=CODE / 2)
        assert float(row["p5_confidence"]) == pytest.approx(np.percentile(confidence, 5), abs=CODE / 2)
        assert float(row["dsc"]) == pytest.approx(2 * (mask & true).sum() / (mask.sum() + true.sum()), abs=1e-12)
        other = theirs[row["id"], row["name"]]
        assert float(row["dsc"]) == pytest.approx(float(other["dsc"]), abs=1e-6)  # which writes six decimals
        assert (int(other["predicted_voxels"]), int(other["reference_voxels"])) == (mask.sum(), true.sum())
    mean = np.mean([float(row["dsc"]) for row in table])
    print(f"{len(setting.cases)} cases, mean DSC {mean:.4f}")
    assert mean >= 0.86


def test_the_real_data_have_47_test_cases(real_hippocampus: Path) -> None:
    """The comparison covers the whole test set."""
    assert len(read_msd(real_hippocampus, str)["test"]) == 47


def test_the_script_goes_on_after_a_scan_that_is_refused(setting: Setting, tmp_path: Path) -> None:
    """It names the file with the service's own words, does the other one, and returns 1."""
    scan = setting.cases[0].images[0]
    shutil.copy(scan, tmp_path)
    (tmp_path / "a-letter.nii.gz").write_text("Dear colleague")
    command: list[str | Path] = [sys.executable, HTTPX_SCRIPT, tmp_path, tmp_path / "out", setting.url]

    found = subprocess.run(command, capture_output=True, text=True, check=False)

    refused, done = found.stdout.splitlines()
    assert (found.returncode, found.stderr) == (1, "")
    assert refused.startswith("a-letter.nii.gz: The file format is not recognised: ")
    assert done.startswith(f"{scan.name}: succeeded after ")
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == [scan.name]


def out_of(found: dict[str, Files]) -> Path:
    """Return the folder of a batch."""
    return next(iter(found.values())).mask.parents[1]


def voxel_ml(path: Path) -> float:
    """Return the volume of a voxel."""
    return float(abs(np.linalg.det(nib.Nifti1Image.from_filename(path).affine[:3, :3])) / 1000)


def cut_off(mask: npt.NDArray[Any], label: int) -> bool:
    """Return whether a label comes within 2 mm of one of the six outermost planes, of voxels of 1 mm."""
    inner = np.zeros(mask.shape, bool)
    inner[tuple(slice(k, -k) for k in (max(1, min(3, n // 10)) for n in mask.shape))] = True
    return bool((mask == label)[~inner].any())
