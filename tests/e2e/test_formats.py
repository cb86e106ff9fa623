"""The same scan in every format: the same mask in the same place."""

import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset

from service.bundle.registry import DEFAULT_MODEL
from service.commands.predict import predict_here

# Turned by some degrees and flipped along the second axis: a mask in the wrong place could not be the right one.
TURN = nib.eulerangles.euler2mat(0.10, -0.15, 0.20) @ np.diag([1, -1, 1])


@pytest.fixture
def scan(hippocampus: Path, tmp_path: Path) -> Path:
    """Return a real scan, rounded to integers since DICOM stores these, on a turned grid."""
    image = nib.Nifti1Image.from_filename(hippocampus / "imagesTr" / "hippocampus_003.nii.gz")
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN, (-12.5, 20.25, 7)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.rint(image.get_fdata()).astype(np.int16), affine), path)
    return path


def converted(scan: Path, suffix: str) -> Path:
    """Write the scan in another format, by programs that are not ours, and return its path."""
    path = scan.with_name(f"scan{suffix}")
    if suffix == ".zip":
        path.write_bytes(dicom_zip(nib.Nifti1Image.from_filename(scan)))
    else:
        SimpleITK.WriteImage(SimpleITK.ReadImage(scan), path, useCompression=True)
    return path


def dicom_zip(image: nib.Nifti1Image) -> bytes:
    """Return a zip of one MR image a slice, in another order than that of the slices."""
    voxels = np.asarray(image.dataobj)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as files:
        for k in reversed(range(voxels.shape[2])):
            file = io.BytesIO()
            pydicom.dcmwrite(file, dicom_slice(voxels[..., k], k, lps), enforce_file_format=True)
            files.writestr(f"series/{97 * k % 101}.dcm", file.getvalue())
    return archive.getvalue()


def dicom_slice(voxels: npt.NDArray[np.int16], k: int, lps: npt.NDArray[np.float64]) -> Dataset:
    """Return the MR image of slice k of a grid with voxels of 1 mm."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID(f"1.2.3.{k + 1}")
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    image.ImagePositionPatient = [f"{mm:.10g}" for mm in lps[:3] @ [0, 0, k, 1]]
    image.ImageOrientationPatient = [f"{cosine:.10g}" for cosine in lps[:3, :2].T.ravel()]
    image.PixelSpacing, image.SliceThickness = [1, 1], 1
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Columns, image.Rows = voxels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.PixelData = voxels.T.astype("<i2").tobytes()
    return image


def predict(scan: Path, out: Path) -> nib.Nifti1Image:
    """Return the mask of `calibrant predict`, run in this process."""
    return nib.Nifti1Image.from_filename(predict_here(scan, out, DEFAULT_MODEL).mask)


def on_grid(image: nib.Nifti1Image, grid: nib.Nifti1Image) -> npt.NDArray[np.uint8]:
    """Return the voxels of an image at the places of another's, which must be places of its own within 0.0001 mm."""
    indices = np.indices(grid.shape).reshape(3, -1)
    places = nib.affines.apply_affine(np.linalg.inv(image.affine) @ grid.affine, indices.T)
    np.testing.assert_allclose(places, np.rint(places), atol=1e-4)
    assert places.min() > -0.5
    i, j, k = np.rint(places).astype(int).T
    return np.asarray(image.dataobj)[i, j, k].reshape(grid.shape)


def test_every_format_gives_the_same_mask_in_the_same_place(scan: Path, tmp_path: Path) -> None:
    """NRRD and MetaImage by SimpleITK, a DICOM series by pydicom: voxel for voxel the mask of the NIfTI scan."""
    expected = predict(scan, tmp_path / "nifti")
    assert set(np.unique(np.asarray(expected.dataobj))) == {0, 1, 2}

    for suffix in (".nrrd", ".mha", ".zip"):
        found = predict(converted(scan, suffix), tmp_path / suffix)
        np.testing.assert_array_equal(on_grid(found, expected), np.asarray(expected.dataobj), err_msg=suffix)
