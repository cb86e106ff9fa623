"""Runs the whole chain against a real Orthanc: storescu, its changes, a job, STOW-RS, then QIDO-RS and WADO-RS.

The mask that dicomweb-client reads back is compared with that of `calibrant predict`, voxel by voxel in patient coordinates:
every pixel of every frame is placed by the frame's own tags. Once with the scan as it is, once rotated by 20 and 30 degrees
about two axes.

    python benchmarks/pacs_chain.py [--data ../shared/data]

Needs the Debian packages orthanc, orthanc-dicomweb and dcmtk. Exit code 1 unless every voxel agrees.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from dicomweb_client.api import DICOMwebClient
from orthanc import Orthanc
from pydicom.dataset import Dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from service.bundle.registry import DEFAULT_MODEL, SHIPPED  # noqa: E402 - the tree that this script lies in
from service.schemas import WITHDRAWN  # noqa: E402 - as above
from tests.dicom_series import Identity, file_of, series_of_array  # noqa: E402 - as above

CANARY = "CANARY^PATIENT"
LONGEST_S = 300


def turned(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return an affine rotated by 20 degrees about x and 30 about z: no voxel axis is parallel to one of the patient."""
    (cx, sx), (cz, sz) = ((np.cos(a), np.sin(a)) for a in np.deg2rad([20, 30]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return nib.affines.from_matvec(about_z @ about_x) @ affine


def write_series(scan: Path, folder: Path, *, oblique: bool) -> list[Path]:
    """Write a NIfTI scan as the files of a DICOM series, with canaries for names."""
    image: Any = nib.load(scan)
    affine = turned(image.affine) if oblique else image.affine
    folder.mkdir()
    paths = []
    for number, instance in enumerate(series_of_array(np.asarray(image.dataobj), affine, Identity(seed=folder.name))):
        paths.append(folder / f"{number:04}.dcm")
        paths[-1].write_bytes(file_of(instance))
    return paths


def predicted(files: list[Path], work: Path) -> Any:  # noqa: ANN401 - an image of nibabel
    """Return the mask of `calibrant predict` for a zip of the files."""
    packed = work / "series.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in files:
            archive.write(path, path.name)
    command = [sys.executable, "-m", "service", "predict", str(packed), "-o", str(work / "out")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return nib.load(next((work / "out").rglob("*_dseg.nii.gz")))


@contextmanager
def service(work: Path, orthanc: Orthanc) -> Iterator[Path]:
    """Run `calibrant serve` that follows Orthanc's changes, and yield its log."""
    pacs = work / "pacs.toml"
    pacs.write_text(
        f'[pacs.clinic]\nurl = "{orthanc.dicomweb}"\northanc = "{orthanc.url}"\npoll_s = 0.5\n'
        'withdrawn = ["seg", "sr", "sc"]\n\n[[rule]]\npacs = "clinic"\n'
    )
    environment = os.environ | {"CALIBRANT_STATE_DIR": str(work / "state"), "CALIBRANT_PACS_FILE": str(pacs)}
    log = work / "serve.log"
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=ROOT) as process:
        try:
            position = work / "state" / "changes" / "clinic"
            wait_for(lambda: position.is_file() and process.poll() is None, "calibrant serve")
            yield log
        finally:
            process.terminate()


def wait_for(ready: Any, what: str) -> Any:  # noqa: ANN401 - whatever is waited for
    """Return the result of `ready` as soon as it is true."""
    deadline = time.monotonic() + LONGEST_S
    while not (answer := ready()):
        if time.monotonic() > deadline:
            msg = f"{what} took longer than {LONGEST_S} s"
            raise TimeoutError(msg)
        time.sleep(0.1)
    return answer


def read_back(client: DICOMwebClient, study: str) -> tuple[Dataset, list[str]]:
    """Return the segmentation of a study, once it and the report are there, and the modalities of its series."""

    def modalities() -> list[str]:
        return sorted(series["00080060"]["Value"][0] for series in client.search_for_series(study))

    wait_for(lambda: {"SEG", "SR", "OT"} <= set(modalities()), "the result")
    (series,) = client.search_for_series(study, search_filters={"Modality": "SEG"})
    (segmentation,) = client.retrieve_series(study, series["0020000E"]["Value"][0])
    return segmentation, modalities()


def differing_voxels(segmentation: Dataset, mask: Any) -> tuple[int, int]:  # noqa: ANN401 - an image of nibabel
    """Return how many voxels of two masks differ and how many are foreground.

    Args:
        segmentation: a BINARY SEG; each frame is placed by its own tags.
        mask: a NIfTI image.
    """
    names = {
        label["name"]: label["value"]
        for label in json.loads((SHIPPED / DEFAULT_MODEL / "service.json").read_bytes())["labels"]
    }
    labels = {
        item.SegmentNumber: names[item.SegmentLabel.removeprefix(f"{WITHDRAWN} ")]
        for item in segmentation.SegmentSequence
    }
    expected = np.asarray(mask.dataobj)
    placed = np.zeros_like(expected)
    to_voxel = np.linalg.inv(mask.affine) @ np.diag([-1.0, -1, 1, 1])  # DICOM's LPS -> RAS -> voxel
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    between_rows, between_columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
    worst = 0.0
    for frame, groups in zip(frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        label = labels[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber]
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        r, c = np.nonzero(frame)
        points = position + np.outer(c * between_columns, row) + np.outer(r * between_rows, column)
        voxels = nib.affines.apply_affine(to_voxel, points)
        if len(voxels):
            worst = max(worst, float(np.abs(voxels - np.rint(voxels)).max()))
        placed[tuple(np.rint(voxels).astype(int).T)] = label
    assert worst < 0.01, f"a voxel lies {worst:.3f} voxels off the grid"  # noqa: S101 - what this script is for
    return int((placed != expected).sum()), int((expected > 0).sum())


def main() -> int:
    """Run the chain and print what came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    scan = parser.parse_args().data / "Task04_Hippocampus" / "imagesTr" / "hippocampus_003.nii.gz"
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        orthanc = Orthanc(work / "orthanc").start()
        try:
            with service(work, orthanc) as log:
                client = DICOMwebClient(orthanc.dicomweb)
                for name in ("straight", "oblique"):
                    files = write_series(scan, work / name, oblique=name == "oblique")
                    (work / f"predict-{name}").mkdir()
                    mask = predicted(files, work / f"predict-{name}")
                    started = time.monotonic()
                    orthanc.send(*files)
                    study = str(pydicom.dcmread(files[0]).StudyInstanceUID)
                    segmentation, modalities = read_back(client, study)
                    seconds = time.monotonic() - started
                    differing, foreground = differing_voxels(segmentation, mask)
                    bad += differing + (foreground == 0)
                    print(
                        f"{name}: {len(files)} images sent, {' '.join(modalities)} read back after {seconds:.1f} s; "
                        f"{foreground} voxels of foreground, {differing} differ"
                    )
                leaks = log.read_text().count(CANARY.split("^", maxsplit=1)[0])
                bad += leaks
                print(f"canaries in the log of the service: {leaks}")
        finally:
            orthanc.kill()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
