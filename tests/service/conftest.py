"""What the tests of the service share: hostile and harmless scans of every format, and one running `calibrant serve`."""

import asyncio
import gzip
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from fastapi import FastAPI
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from service import errors
from tests.dicom_series import Identity, series_of_array, write_series

CANARY = "CNRY-73019"
"""Part of every text field of the files made here, and of nothing else: no output may contain it."""

TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name", "data_type", "unused_str")

# Voxels of 1 x 1.5 x 2 mm, rotated by 30 degrees about the third axis: all axes and signs differ.
OBLIQUE = np.array([[0.866, -0.75, 0, -9], [0.5, 1.299, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])
OBLIQUE.setflags(write=False)

MAX_UPLOAD_BYTES = 2_000_000
"""Upload limit of the running service, in bytes."""

Hostile = tuple[bytes, type[errors.CalibrantError]]
"""A file that must be refused, and the expected error."""


def phantom(*shape: int) -> npt.NDArray[np.int16]:
    """Return a volume in which all voxels differ."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) * 7 % 9973


def make_nifti(
    array: npt.NDArray[Any] | None = None,
    affine: npt.NDArray[np.float64] = OBLIQUE,
    *,
    version: int = 1,
    endianness: str = "<",
    **fields: Any,  # noqa: ANN401 - whatever the header's field holds
) -> bytes:
    """Return a .nii file with the canary in its text fields; header fields are then overwritten as given."""
    types: dict[int, Any] = {1: (nib.Nifti1Image, nib.Nifti1Header), 2: (nib.Nifti2Image, nib.Nifti2Header)}
    image_type, header_type = types[version]
    array = phantom(4, 5, 6) if array is None else array
    header = header_type(endianness=endianness)
    header.set_data_dtype(array.dtype)
    for name in TEXT_FIELDS:
        if name in header.structarr.dtype.names:
            header[name] = CANARY
    image = image_type(array, affine, header)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    content = image.to_bytes()
    return patch_nifti(content, **fields)


def patch_nifti(content: bytes, **fields: Any) -> bytes:  # noqa: ANN401 - as above
    """Return the file with overwritten header fields; `pixdim_1=0` sets one element of a field."""
    types: dict[int, Any] = {0x5C: (348, nib.Nifti1Header), 0x1C: (540, nib.Nifti2Header)}
    size, header_type = types[max(content[0], content[3])]
    header = header_type(content[:size], check=False)
    for name, value in fields.items():
        field, _, index = name.rpartition("_")
        if field in ("dim", "pixdim") and index.isdigit():
            header.structarr[field][int(index)] = value
        else:
            header.structarr[name] = value
    return header.structarr.tobytes() + content[size:]


NRRD_FIELDS = {
    "content": CANARY,
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "4 5 6",
    "space directions": "(-0.866,-0.5,0) (0.75,-1.299,0) (0,0,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(9,20,30)",
}
"""The phantom at the oblique place, in LPS."""

MHA_FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "-0.866025 -0.5 0 0.5 -0.866025 0 0 0 1",
    "Offset": "9 20 30",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "1 1.5 2",
    "DimSize": "4 5 6",
    "Comment": CANARY,
    "ElementType": "MET_SHORT",
    "ElementDataFile": "LOCAL",
}
"""The phantom at the oblique place, in LPS."""


def make_nrrd(payload: bytes | None = None, **fields: str | None) -> bytes:
    """Return a .nrrd file of the phantom; fields are replaced, added or, for None, omitted (`_` stands for a space)."""
    chosen = NRRD_FIELDS | {name.replace("_", " "): text for name, text in fields.items()}
    lines = "".join(f"{name}: {text}\n" for name, text in chosen.items() if text is not None)
    voxels = phantom(4, 5, 6).tobytes(order="F") if payload is None else payload
    return f"NRRD0004\n# {CANARY}\n{lines}{CANARY}:={CANARY}\n\n".encode() + voxels


def make_mha(payload: bytes | None = None, **fields: str | None) -> bytes:
    """Return an .mha file of the phantom; fields are replaced, added before the last or, for None, omitted."""
    last = fields.pop("ElementDataFile", MHA_FIELDS["ElementDataFile"])
    chosen = {name: text for name, text in MHA_FIELDS.items() if name != "ElementDataFile"} | fields
    lines = "".join(f"{name} = {text}\n" for name, text in chosen.items() if text is not None)
    voxels = phantom(4, 5, 6).tobytes(order="F") if payload is None else payload
    return f"{lines}ElementDataFile = {last}\n".encode() + voxels


def make_slices(
    array: npt.NDArray[Any] | None = None, affine: npt.NDArray[np.float64] = OBLIQUE, *, slope: str | None = None
) -> list[Dataset]:
    """Return a CT image for each slice of an array (i, j, k), with the canary in its text, to be edited and saved.

    With `slope`, intensities are slope x value - 1024.
    """
    array = phantom(4, 5, 6) if array is None else array
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    slices = []
    for k in range(array.shape[2]):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{k + 1}")
        image.PatientName = image.PatientID = image.SeriesDescription = CANARY
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        image.Modality, image.ImageType, image.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k + 1
        image.ImagePositionPatient = [f"{mm:.8g}" for mm in lps[:3] @ [0, 0, k, 1]]
        image.ImageOrientationPatient = [f"{cosine:.8g}" for cosine in (lps[:3, :2] / spacing[:2]).T.ravel()]
        image.PixelSpacing = [f"{mm:.8g}" for mm in spacing[1::-1]]
        image.SliceThickness = f"{spacing[2]:.8g}"
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.Columns, image.Rows = array.shape[:2]
        image.BitsAllocated = image.BitsStored = 8 * array.itemsize
        image.HighBit, image.PixelRepresentation = image.BitsStored - 1, int(array.dtype.kind == "i")
        if slope is not None:
            image.RescaleSlope, image.RescaleIntercept = slope, "-1024"
        image["PixelData"] = pydicom.DataElement("PixelData", "OW", array[..., k].T.tobytes())
        slices.append(image)
    return slices


def make_zip(files: dict[str, bytes] | list[Dataset]) -> bytes:
    """Return a zip of files, or of DICOM images under names with the canary."""
    if isinstance(files, list):
        files = {f"{CANARY}/{number:04}": save_dicom(image) for number, image in enumerate(files)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return archive.getvalue()


def save_dicom(image: Dataset) -> bytes:
    """Return the file of a DICOM image."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, image, enforce_file_format=True)
    return file.getvalue()


def _edited(**tags: Any) -> bytes:  # noqa: ANN401 - whatever the tag holds
    slices = make_slices()
    for name, value in tags.items():
        setattr(slices[2], name, value)
    return make_zip(slices)


def _unset(content: bytes, **codes: int) -> bytes:
    return patch_nifti(content, **({"sform_code": 0, "qform_code": 0} | codes))


def _hostile() -> dict[str, Hostile]:
    good = make_nifti()
    packed = gzip.compress(good, mtime=0)
    second = make_nifti(version=2)
    rgb = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nan = phantom(4, 5, 6).astype(np.float32)
    nan[1, 2, 3] = np.nan
    damaged = bytearray(packed)
    damaged[-6] ^= 1
    text = f"name: {CANARY}\n".encode()
    sheared, flat, twins = OBLIQUE.copy(), OBLIQUE.copy(), OBLIQUE.copy()
    sheared[0, 2] = 0.1
    flat[:3, 1] = 0
    twins[:3, 1] = twins[:3, 0]

    truncated, too_long = errors.PayloadTruncated, errors.PayloadTooLong
    format_, dimensions, large = errors.UnrecognisedFormat, errors.UnsupportedDimensions, errors.VolumeTooLarge
    kind, spacing, matrix = errors.UnsupportedVoxelType, errors.InvalidSpacing, errors.InvalidAffine
    quaternion, sform = _unset(good, qform_code=1), _unset(good, sform_code=1)
    return {
        "empty": (b"", errors.EmptyBody),
        "one byte": (b"\x5c", format_),
        "text": (text * 40, format_),
        "a damaged DICOM file": (bytes(128) + b"DICM" + text * 40, errors.NoDicom),
        "a DICOM file of one image": (save_dicom(make_slices()[0]), dimensions),
        "a DICOM data set without its file's header": (b"\x08\x00\x05\x00CS\n\x00ISO_IR 100" + text, format_),
        "NRRD of version 9": (b"NRRD0009\n# " + text + bytes(500), format_),
        "pickle": (pickle.dumps([CANARY] * 90), format_),
        "gzip of nothing": (gzip.compress(b""), format_),
        "gzip of text": (gzip.compress(text * 40), format_),
        "gzip in gzip": (gzip.compress(packed), format_),
        "detached header": (patch_nifti(good, magic=b"ni1"), format_),
        "detached header of NIfTI-2": (patch_nifti(second, magic=b"ni2"), format_),
        "Analyze": (patch_nifti(good, magic=b""), format_),
        "magic of the other version": (patch_nifti(good, magic=b"n+2"), format_),
        "voxels inside the header": (patch_nifti(good, vox_offset=0), format_),
        "voxels before the file": (patch_nifti(good, vox_offset=-1), format_),
        "voxels far away": (patch_nifti(good, vox_offset=1e9), format_),
        "voxels nowhere": (patch_nifti(good, vox_offset=np.nan), format_),
        **{f"cut at {n}": (good[:n], truncated) for n in (4, 5, 200, 347, 348, 351, 352, 400, len(good) - 1)},
        **{f"NIfTI-2 cut at {n}": (second[:n], truncated) for n in (4, 348, 539, 540, len(second) - 1)},
        **{f"gzip cut at {n}": (packed[:n], truncated) for n in (2, 9, 10, 30, len(packed) // 2, len(packed) - 1)},
        "gzip of a cut file": (gzip.compress(good[:-1]), truncated),
        "gzip without its trailer": (packed[:-8], truncated),
        "gzip with a wrong checksum": (bytes(damaged), truncated),
        "gzip magic, then nothing known": (b"\x1f\x8b" + text * 40, truncated),
        "second gzip member cut": (gzip.compress(good[:500]) + gzip.compress(good[500:])[:-9], truncated),
        "one byte more": (good + b"\0", too_long),
        "text behind the voxels": (good + text, too_long),
        "gzip of one byte more": (gzip.compress(good + b"\0"), too_long),
        "second file in a second gzip member": (packed + packed, too_long),
        "2-D": (make_nifti(phantom(4, 5)), dimensions),
        "one slice": (make_nifti(phantom(4, 5, 1)), dimensions),
        "4-D": (make_nifti(phantom(4, 5, 6, 2)), dimensions),
        "5-D vector": (make_nifti(phantom(4, 5, 6, 1, 3)), dimensions),
        "rank 0": (patch_nifti(good, dim_0=0), dimensions),
        "rank 8": (patch_nifti(good, dim_0=8), dimensions),
        "rank -1": (patch_nifti(good, dim_0=-1), dimensions),
        "axis of 0": (patch_nifti(good, dim_2=0), dimensions),
        "axis of -5": (patch_nifti(good, dim_2=-5), dimensions),
        "axis of -1, FreeSurfer's sign of a long first axis": (patch_nifti(good, dim_1=-1), dimensions),
        "32767 cubed": (patch_nifti(good, dim_1=32767, dim_2=32767, dim_3=32767), large),
        "2^62 cubed": (patch_nifti(second, dim_1=2**62, dim_2=2**62, dim_3=2**62), large),
        "2^63 - 1 along an axis": (patch_nifti(second, dim_1=2**63 - 1), large),
        "RGB": (make_nifti(rgb), kind),
        "complex64": (make_nifti(phantom(4, 5, 6).astype(np.complex64)), kind),
        "complex128": (make_nifti(phantom(4, 5, 6).astype(np.complex128)), kind),
        "float128": (patch_nifti(good, datatype=1536), kind),
        "one bit a voxel": (patch_nifti(good, datatype=1), kind),
        "voxel type 0": (patch_nifti(good, datatype=0), kind),
        "voxel type that nobody defined": (patch_nifti(good, datatype=9999), kind),
        "voxel type that nobody defined, negative": (patch_nifti(good, datatype=-4), kind),
        **{f"voxel size {mm}": (patch_nifti(quaternion, pixdim_2=mm), spacing) for mm in (0, -1, np.nan, np.inf, 1e38)},
        "matrix NaN": (patch_nifti(sform, srow_y=np.nan), matrix),
        "matrix infinite": (patch_nifti(sform, srow_y=[0, 1, np.inf, 0]), matrix),
        "offset NaN": (patch_nifti(sform, srow_y=[0.5, 1.299, 0, np.nan]), matrix),
        "matrix singular, an axis of 0": (patch_nifti(sform, srow_x=flat[0], srow_y=flat[1], srow_z=flat[2]), matrix),
        "edge of 6 m": (make_nifti(affine=np.diag([1300.0, 1, 1, 1])), spacing),
        "voxels in metres": (patch_nifti(good, xyzt_units=1, pixdim_1=1000), spacing),
        "matrix singular, two equal axes": (
            patch_nifti(good, srow_x=twins[0], srow_y=twins[1], srow_z=twins[2]),
            matrix,
        ),
        "matrix sheared by 3 degrees": (patch_nifti(good, srow_x=sheared[0]), matrix),
        "quaternion too long": (patch_nifti(quaternion, quatern_b=2), matrix),
        "quaternion NaN": (patch_nifti(quaternion, quatern_c=np.nan), matrix),
        "quaternion's offset infinite": (patch_nifti(quaternion, qoffset_z=np.inf), matrix),
        "no orientation": (_unset(good), errors.MissingOrientation),
        "negative orientation codes": (_unset(good, sform_code=-1, qform_code=-1), errors.MissingOrientation),
        "one voxel NaN": (make_nifti(nan), errors.NonFiniteVoxels),
        "all voxels NaN": (make_nifti(np.full((4, 5, 6), np.nan, np.float32)), errors.NonFiniteVoxels),
        "one voxel infinite": (make_nifti(np.where(np.isnan(nan), -np.inf, nan)), errors.NonFiniteVoxels),
        "constant": (make_nifti(np.full((4, 5, 6), 42, np.int16)), errors.ConstantVolume),
        "constant zero": (make_nifti(np.zeros((4, 5, 6))), errors.ConstantVolume),
    }


def _hostile_text_headers() -> dict[str, Hostile]:
    """Return NRRD and MetaImage files, one for every type of fault; test_nrrd.py and test_metaimage.py have the rest."""
    packed = zlib.compress(phantom(4, 5, 6).tobytes(order="F"))
    nan = np.full(120, np.nan, np.float32).tobytes()
    return {
        "NRRD header cut": (make_nrrd()[:100], errors.PayloadTruncated),
        "NRRD voxels cut": (make_nrrd()[:-1], errors.PayloadTruncated),
        "NRRD with one byte more": (make_nrrd() + b"\0", errors.PayloadTooLong),
        "NRRD that reads a file": (make_nrrd(DATA_FILE="/etc/passwd"), errors.UnsafeHeader),
        "NRRD without sizes": (make_nrrd(sizes=None), errors.InvalidHeader),
        "NRRD in bzip2": (make_nrrd(encoding="bzip2"), errors.UnsupportedCompression),
        "NRRD of 4 axes": (
            make_nrrd(dimension="4", sizes="4 5 3 2", space_directions="(1,0,0) (0,1,0) (0,0,1) none", kinds=None),
            errors.UnsupportedDimensions,
        ),
        "NRRD of 6 m": (make_nrrd(space_directions="(1,0,0) (0,1,0) (0,0,1000)"), errors.InvalidSpacing),
        "NRRD of blocks": (make_nrrd(type="block"), errors.UnsupportedVoxelType),
        "NRRD in an unknown space": (make_nrrd(space="scanner-xyz"), errors.MissingOrientation),
        "NRRD with a direction of 0": (
            make_nrrd(space_directions="(1,0,0) (0,0,0) (0,0,2)"),
            errors.InvalidSpacing,
        ),
        "NRRD with an origin of NaN": (make_nrrd(space_origin="(nan,0,0)"), errors.InvalidAffine),
        "NRRD of 10^18 voxels": (make_nrrd(sizes="1000000 1000000 1000000"), errors.VolumeTooLarge),
        "NRRD of NaN": (make_nrrd(nan, type="float"), errors.NonFiniteVoxels),
        "NRRD of one intensity": (make_nrrd(bytes(240)), errors.ConstantVolume),
        "MHA header cut": (make_mha()[:100], errors.PayloadTruncated),
        "MHA zlib stream cut": (make_mha(packed[:-5], CompressedData="True"), errors.PayloadTruncated),
        "MHA that reads a file": (make_mha(ElementDataFile="/etc/passwd"), errors.UnsafeHeader),
        "MHA of -3 axes": (make_mha(NDims="-3"), errors.UnsupportedDimensions),
        "MHA with a matrix of 1e308": (
            make_mha(TransformMatrix="1e308 0 0 0 1 0 0 0 1"),
            errors.InvalidAffine,
        ),
        "MHA with a spacing of 0": (make_mha(ElementSpacing="1 0 1"), errors.InvalidSpacing),
        "MHA of 6 m": (make_mha(ElementSpacing="1 1 1000"), errors.InvalidSpacing),
    }


def _hostile_zips() -> dict[str, Hostile]:
    """Return zips, one for every type of fault; test_archive.py and the DICOM tests have the rest."""
    slices = make_slices()
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    linked = io.BytesIO()
    with zipfile.ZipFile(linked, "w") as file:
        file.writestr(link, "/etc/passwd")
    encrypted = bytearray(make_zip({"a": b"a"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    shifted = make_slices()
    for k, image in enumerate(shifted):
        image.ImagePositionPatient[0] += k
    return {
        "zip of no DICOM": (make_zip({f"{CANARY}.nii": make_nifti()}), errors.NoDicom),
        "zip cut": (make_zip(slices)[:-30], errors.PayloadTruncated),
        "zip of a link": (linked.getvalue(), errors.UnsafeArchive),
        "zip that leads out": (make_zip({f"../{CANARY}": b"a"}), errors.UnsafeArchive),
        "zip with a password": (bytes(encrypted), errors.EncryptedArchive),
        "DICOM damaged": (make_zip({CANARY: save_dicom(slices[0])[:400]}), errors.InvalidHeader),
        "DICOM of two series": (_edited(SeriesInstanceUID="1.2.55"), errors.MultipleSeries),
        "DICOM slice missing": (make_zip(slices[:3] + slices[4:]), errors.MissingSlices),
        "DICOM slice moved": (_edited(ImagePositionPatient=[9, 20, 34.9]), errors.IrregularSpacing),
        "DICOM tilted": (make_zip(shifted), errors.GantryTilt),
        "DICOM in two time points": (
            _edited(ImagePositionPatient=slices[3].ImagePositionPatient),
            errors.DuplicateInstance,
        ),
        "DICOM without a position": (_edited(ImagePositionPatient=None), errors.MissingOrientation),
        "DICOM of 6 m": (make_zip(make_slices(affine=np.diag([1.0, 1, 1000, 1]))), errors.InvalidSpacing),
        "DICOM in colour": (_edited(PhotometricInterpretation="RGB"), errors.UnsupportedVoxelType),
    }


HOSTILE = _hostile() | _hostile_text_headers() | _hostile_zips()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise each test that takes a hostile file over all of them.

    `hostile` is every file, `undecodable` every file that decoding refuses.
    """
    if "hostile" in metafunc.fixturenames:
        metafunc.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
    if "undecodable" in metafunc.fixturenames:
        files = {name: fault for name, fault in HOSTILE.items() if fault[1] is not errors.ConstantVolume}
        metafunc.parametrize("undecodable", files.values(), ids=files.keys())


@pytest.fixture(scope="session")
def canary() -> str:
    """Return the text that every file made here contains."""
    return CANARY


@pytest.fixture(scope="session")
def oblique() -> npt.NDArray[np.float64]:
    """Return an affine that is neither axis-aligned nor isotropic; all tests share it, so it cannot be written to."""
    return OBLIQUE


@pytest.fixture(scope="session")
def nifti() -> Callable[..., bytes]:
    """Return the function that makes a .nii file with the canary in its text fields."""
    return make_nifti


@pytest.fixture(scope="session")
def nrrd() -> Callable[..., bytes]:
    """Return the function that makes a .nrrd file with the canary in comment, content and a custom key."""
    return make_nrrd


@pytest.fixture(scope="session")
def mha() -> Callable[..., bytes]:
    """Return the function that makes an .mha file with the canary in its comment."""
    return make_mha


@pytest.fixture(scope="session")
def slices_of() -> Callable[..., list[Dataset]]:
    """Return the function that makes the DICOM images of an array, with the canary in their text."""
    return make_slices


@pytest.fixture(scope="session")
def zip_of() -> Callable[..., bytes]:
    """Return the function that zips files, or DICOM images under names with the canary."""
    return make_zip


@pytest.fixture(scope="session")
def dicom_file() -> Callable[[Dataset], bytes]:
    """Return the function that makes the file of a DICOM image."""
    return save_dicom


@pytest.fixture(scope="session")
def real_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a real CT series of 78 files, or of a drawn one if it is absent (never in CI)."""
    default = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("CALIBRANT_DATA", default)) / "chaos_ct_dicom" / "DICOM_anon"
    if not root.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{root} is absent: set CALIBRANT_DATA to the folder that holds chaos_ct_dicom")
        root = tmp_path_factory.mktemp("series")
        array = np.random.default_rng(78).integers(-1000, 1500, (512, 64, 78)).astype(np.int16)
        write_series(series_of_array(array, np.diag([-0.7, -0.7, 2.0, 1.0]), Identity(modality="CT")), root)
    return root


@pytest.fixture(scope="session")
def patch() -> Callable[..., bytes]:
    """Return the function that overwrites header fields."""
    return patch_nifti


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Yield address, log and state directory of the one `calibrant serve` that all tests share."""
    root = tmp_path_factory.mktemp("server")
    (root / "bundles" / "broken").mkdir(parents=True)
    log = root / "log"
    environment = os.environ | {
        "CALIBRANT_STATE_DIR": str(root / "state"),
        "CALIBRANT_BUNDLE_DIR": str(root / "bundles"),
        "CALIBRANT_MAX_UPLOAD_BYTES": str(MAX_UPLOAD_BYTES),
    }
    command = [sys.executable, "-m", "service", "serve", "--port", "0"]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        try:
            url = _address(process, log)
            _await_ready(url)
            yield url, log, root / "state"
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if " listens at " in line:
                return line.split()[4]
        time.sleep(0.05)
    pytest.fail(f"calibrant serve did not start: {log.read_text()}")


def _await_ready(url: str) -> None:
    deadline = time.monotonic() + 60
    while not (answer := httpx.get(f"{url}/v2/health/ready")).is_success:
        if time.monotonic() > deadline:
            pytest.fail(f"calibrant serve did not become ready: {answer.text}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def server_url(server: tuple[str, Path, Path]) -> str:
    """Return the address of the running service."""
    return server[0]


@pytest.fixture(scope="session")
def server_log(server: tuple[str, Path, Path]) -> Path:
    """Return the file with all output of the running service."""
    return server[1]


@pytest.fixture(scope="session")
def server_state(server: tuple[str, Path, Path]) -> Path:
    """Return the state directory of the running service."""
    return server[2]


@pytest.fixture(scope="session")
def http(server_url: str) -> Iterator[httpx.Client]:
    """Yield a connection to the running service."""
    with httpx.Client(base_url=server_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def ask() -> Callable[..., httpx.Response]:
    """Return the function that sends a request to an application in this process, without running its lifespan.

    Starlette's TestClient is not used, because it warns about httpx.
    """

    def send(app: FastAPI, method: str, url: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, url, **options)

        return asyncio.run(answer())

    return send
