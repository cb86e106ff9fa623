"""What the tests of the service share: hostile and harmless NIfTI files, and one running `calibrant serve`."""

import asyncio
import gzip
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI

from service import errors

CANARY = "CNRY-73019"
"""Stands in every text field of the files made here, and nowhere else: it must not come out anywhere."""

TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name", "data_type", "unused_str")

# Voxels of 1 x 1.5 x 2 mm, turned by 30 degrees about the third axis: no two axes and no two signs are alike.
OBLIQUE = np.array([[0.866, -0.75, 0, -9], [0.5, 1.299, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])

MAX_UPLOAD_BYTES = 2_000_000
"""Limit of the running service."""

Hostile = tuple[bytes, type[errors.CalibrantError]]
"""A file that must be refused, and the error that says why."""


def phantom(*shape: int) -> npt.NDArray[np.int16]:
    """Return a volume in which no two voxels are equal."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) * 7 % 9973


def make_nifti(
    array: npt.NDArray[Any] | None = None,
    affine: npt.NDArray[np.float64] = OBLIQUE,
    *,
    version: int = 1,
    endianness: str = "<",
    **fields: Any,  # noqa: ANN401 - whatever the header's field holds
) -> bytes:
    """Return a .nii file with the canary in its text fields; then header fields are overwritten as given."""
    image_type, header_type = {
        1: (nib.Nifti1Image, nib.Nifti1Header),
        2: (nib.Nifti2Image, nib.Nifti2Header),
    }[version]
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
    """Return the file with fields of its header overwritten; `pixdim_1=0` sets one element of a field."""
    size, header_type = {0x5C: (348, nib.Nifti1Header), 0x1C: (540, nib.Nifti2Header)}[max(content[0], content[3])]
    header = header_type(content[:size], check=False)
    for name, value in fields.items():
        field, _, index = name.rpartition("_")
        if field in ("dim", "pixdim") and index.isdigit():
            header.structarr[field][int(index)] = value
        else:
            header.structarr[name] = value
    return header.structarr.tobytes() + content[size:]


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
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{CANARY}.nii", good)
    text = f"name: {CANARY}\n".encode()
    sheared, flat, twins = OBLIQUE.copy(), OBLIQUE.copy(), OBLIQUE.copy()
    sheared[0, 2] = 0.1
    flat[:3, 1] = 0
    twins[:3, 1] = twins[:3, 0]

    truncated, too_long = errors.PayloadTruncated, errors.PayloadTooLong
    format_, dimensions, large = errors.UnrecognisedFormat, errors.UnsupportedDimensions, errors.VolumeTooLarge
    kind, spacing, matrix = errors.UnsupportedVoxelType, errors.InvalidSpacing, errors.InvalidAffine
    quaternion = _unset(good, qform_code=1)
    return {
        "empty": (b"", errors.EmptyBody),
        "one byte": (b"\x5c", format_),
        "text": (text * 40, format_),
        "NRRD": (b"NRRD0004\n# " + text + bytes(500), format_),
        "MHA": (b"ObjectType = Image\nComment = " + text + bytes(500), format_),
        "DICOM": (bytes(128) + b"DICM" + text * 40, format_),
        "zip": (archive.getvalue(), format_),
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
        **{f"voxel size {mm}": (patch_nifti(good, pixdim_2=mm), spacing) for mm in (0, -1, np.nan, np.inf)},
        "matrix NaN": (patch_nifti(good, srow_y=np.nan), matrix),
        "matrix infinite": (patch_nifti(good, srow_y=[0, 1, np.inf, 0]), matrix),
        "offset NaN": (patch_nifti(good, srow_y=[0.5, 1.299, 0, np.nan]), matrix),
        "matrix singular, an axis of 0": (patch_nifti(good, srow_x=flat[0], srow_y=flat[1], srow_z=flat[2]), matrix),
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


HOSTILE = _hostile()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that asks for such a file once for every one of them.

    `hostile` is each of them, `undecodable` each that decoding refuses, `one_of_each` one of these for each error.
    """
    if "hostile" in metafunc.fixturenames:
        metafunc.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
    if "undecodable" in metafunc.fixturenames:
        found = {name: each for name, each in HOSTILE.items() if each[1] is not errors.ConstantVolume}
        metafunc.parametrize("undecodable", found.values(), ids=found.keys())
    if "one_of_each" in metafunc.fixturenames:
        first = {error: (content, error) for content, error in reversed(HOSTILE.values())}
        del first[errors.ConstantVolume]
        metafunc.parametrize("one_of_each", first.values(), ids=[error.code for error in first])


@pytest.fixture(scope="session")
def canary() -> str:
    """Return the text that stands in every file made here."""
    return CANARY


@pytest.fixture(scope="session")
def oblique() -> npt.NDArray[np.float64]:
    """Return an affine that is neither along the axes nor isotropic."""
    return OBLIQUE.copy()


@pytest.fixture(scope="session")
def nifti() -> Callable[..., bytes]:
    """Return the function that makes a .nii file with the canary in its text fields."""
    return make_nifti


@pytest.fixture(scope="session")
def patch() -> Callable[..., bytes]:
    """Return the function that overwrites fields of a header."""
    return patch_nifti


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Yield address, log and state directory of one `calibrant serve` that all tests share."""
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
            yield _address(process, log), log, root / "state"
        finally:
            process.terminate()


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if " is ready at " in line:
                return line.split()[5]
        time.sleep(0.05)
    pytest.fail(f"calibrant serve did not start: {log.read_text()}")


@pytest.fixture(scope="session")
def server_url(server: tuple[str, Path, Path]) -> str:
    """Return the address of the running service."""
    return server[0]


@pytest.fixture(scope="session")
def server_log(server: tuple[str, Path, Path]) -> Path:
    """Return the file that holds everything the running service has printed."""
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
    """Return the function that sends one request to an application in this process, whose lifespan is not run.

    Starlette's TestClient would do, but warns of httpx.
    """

    def send(app: FastAPI, method: str, url: str, **options: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, url, **options)

        return asyncio.run(answer())

    return send
