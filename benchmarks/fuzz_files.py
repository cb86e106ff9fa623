"""Files for `benchmarks/fuzz.py`: valid ones of every format, and mutants of them, each determined by its number.

Every text field holds a canary, which no message may repeat.
"""

import gzip
import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Final

import nibabel as nib
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

GENERATION: Final = 1
"""Counts belong to mutants of one generation: raise it whenever a number makes another file than before."""

CANARY: Final = "CNRY-73019"
"""Part of every text field of the files made here."""

_AFFINE: Final = np.array([[0.866, -0.75, 0, -9], [0.5, 1.299, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
_ARRAY: Final = (np.arange(120, dtype=np.int16) * 7 % 9973).reshape(4, 5, 6)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_HEADER_BYTES: Final = 700
"""Where three of four changes are made: behind lie voxels."""

_INTEGERS: Final = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    127,
    255,
    4096,
    32767,
    65535,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**62,
    2**63 - 1,
)
_FLOATS: Final = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-38,
    1e38,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    20.0,
    5001.0,
)
_WORDS: Final = (
    *("0", "-1", "1", "2", "3", "7", "8", "4096", "99999999999999999999", "1e308", "nan", "inf", "-inf", "1e-300", ""),
    *("LOCAL", "LIST", "/etc/passwd", "x%n%03d 1 4 1", "True", "False", "none", "(1,0,0)", "(nan,0,0)", "gzip", "raw"),
    *("MET_SHORT", "MET_DOUBLE", "double", "uchar", "little", "big", "left-posterior-superior", "domain", "data file"),
)


def _nifti() -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    for name in ("descrip", "aux_file", "db_name", "intent_name"):
        header[name] = CANARY
    image = nib.Nifti1Image(_ARRAY, _AFFINE, header)
    image.set_qform(_AFFINE, 1)
    image.set_sform(_AFFINE, 1)
    return bytes(image.to_bytes())


def _nrrd(encoding: str) -> bytes:
    voxels = _ARRAY.tobytes(order="F")
    text = (
        f"NRRD0004\n# {CANARY}\ncontent: {CANARY}\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 5 6\n"
        "space directions: (-0.866,-0.5,0) (0.75,-1.299,0) (0,0,2)\nkinds: domain domain domain\nendian: little\n"
        f"encoding: {encoding}\nspace origin: (9,20,30)\n{CANARY}:={CANARY}\n\n"
    )
    return text.encode() + (gzip.compress(voxels, mtime=0) if encoding == "gzip" else voxels)


def _mha(compressed: str) -> bytes:
    voxels = _ARRAY.tobytes(order="F")
    text = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = {compressed}\n"
        "TransformMatrix = -0.866025 -0.5 0 0.5 -0.866025 0 0 0 1\nOffset = 9 20 30\nCenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = RAI\nElementSpacing = 1 1.5 2\nDimSize = 4 5 6\nComment = {CANARY}\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    return text.encode() + (zlib.compress(voxels) if compressed == "True" else voxels)


def _mgh() -> bytes:
    return bytes(nib.freesurfer.mghformat.MGHImage(_ARRAY, _AFFINE).to_bytes()) + CANARY.encode()


def _image(k: int, transfer_syntax: uid.UID) -> Dataset:
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ _AFFINE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = transfer_syntax
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = uid.MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid.UID(f"1.2.3.{k + 1}")
    image.PatientName = image.PatientID = image.SeriesDescription = CANARY
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    image.Modality, image.ImageType, image.InstanceNumber = "MR", ["ORIGINAL", "PRIMARY"], k + 1
    image.ImagePositionPatient = [f"{mm:.8g}" for mm in lps[:3] @ [0, 0, k, 1]]
    image.ImageOrientationPatient = [f"{cosine:.8g}" for cosine in (lps[:3, :2] / spacing[:2]).T.ravel()]
    image.PixelSpacing = [f"{mm:.8g}" for mm in spacing[1::-1]]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Columns, image.Rows = _ARRAY.shape[:2]
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    image.RescaleSlope, image.RescaleIntercept, image.PixelPaddingValue = "1", "-5", -2000
    image["PixelData"] = pydicom.DataElement("PixelData", "OW", _ARRAY[..., k].T.tobytes())
    return image


def _saved(image: Dataset) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, image, enforce_file_format=True)
    return file.getvalue()


def _enhanced() -> bytes:
    """Return one DICOM file of all frames (PS3.3 A.36)."""
    singles = [_image(k, uid.ExplicitVRLittleEndian) for k in range(_ARRAY.shape[2])]
    whole, frames = singles[0], []
    for single in singles:
        frame, position, orientation, measures = Dataset(), Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = single.ImagePositionPatient
        orientation.ImageOrientationPatient = single.ImageOrientationPatient
        measures.PixelSpacing = single.PixelSpacing
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [position], [orientation]
        frame.PixelMeasuresSequence = [measures]
        frames.append(frame)
    whole["PixelData"] = pydicom.DataElement("PixelData", "OW", b"".join(single.PixelData for single in singles))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "InstanceNumber"):
        delattr(whole, name)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = uid.EnhancedMRImageStorage
    whole.NumberOfFrames, whole.PerFrameFunctionalGroupsSequence = len(frames), frames
    return _saved(whole)


def _zipped(members: list[bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(members):
            info = zipfile.ZipInfo(f"{CANARY}/{number:04}", _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return packed.getvalue()


@cache
def _slices(transfer_syntax: uid.UID) -> list[bytes]:
    return [_saved(_image(k, transfer_syntax)) for k in range(_ARRAY.shape[2])]


@cache
def valid_files(form: str) -> list[bytes]:
    """Return the valid files of a format from which mutants are made."""
    make: dict[str, Callable[[], list[bytes]]] = {
        "nifti": lambda: [_nifti()],
        "nifti-gz": lambda: [gzip.compress(_nifti(), mtime=0)],
        "nrrd": lambda: [_nrrd("raw"), _nrrd("gzip")],
        "mha": lambda: [_mha("False"), _mha("True")],
        "mgz": lambda: [gzip.compress(_mgh(), mtime=0), _mgh()],
        "dicom": lambda: [_enhanced()],
        "dicom-zip": lambda: [
            _zipped(_slices(uid.ExplicitVRLittleEndian)),
            _zipped(_slices(uid.DeflatedExplicitVRLittleEndian)),
        ],
    }
    return make[form]()


FORMATS: Final = ("nifti", "nifti-gz", "nrrd", "mha", "mgz", "dicom", "dicom-zip")
"""Every format that is read, plain and packed."""

_TEXT: Final = ("nrrd", "mha")


def mutant(form: str, number: int) -> bytes:
    """Return the mutant of a format with this number: the same for ever, whatever was made before.

    Args:
        form: one of `FORMATS`.
        number: from 0.
    """
    rng = random.Random(f"{form}/{number}")
    content = rng.choice(valid_files(form))
    inside = rng.random() < 0.7
    if form == "dicom-zip" and rng.random() < 0.3:
        return _renamed(_zipped(_edited_slices(rng)), rng)
    if form == "dicom-zip" and inside:
        members = list(_slices(rng.choice((uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian))))
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(members))
            members[at] = rng.choice((members[at], *members)) if rng.random() < 0.1 else _changed(members[at], rng)
        return _zipped(members)
    if content.startswith(b"\x1f\x8b") and inside:
        return gzip.compress(_changed(gzip.decompress(content), rng), 1, mtime=0)
    return _changed(content, rng, text=form in _TEXT and inside)


_EDITS: Final[dict[str, tuple[object, ...]]] = {
    "SeriesInstanceUID": ("1.2.55", "1.2.56"),
    "SeriesNumber": ("7", "8"),
    "ImageType": (["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "MOSAIC"], None),
    "ImagePositionPatient": ([9, 20, 30], [9, 20, 34.9], [9, 20, 1e5], [8, 25, 32], None),
    "ImageOrientationPatient": ([0, 1, 0, 0, 0, 1], [1, 0, 0, 0.5, 0.5, 0], [-1, 0, 0, 0, -1, 0], None),
    "PixelSpacing": ([3, 3], [0, 1], [1e-9, 1], [4999, 4999], None),
    "FrameOfReferenceUID": ("1.2.77", None),
    "SOPInstanceUID": ("1.2.3.1", "1.2.3.2"),
    "StudyInstanceUID": (None, ""),
    "SliceThickness": ("0", "-1", "2"),
    "Modality": ("CT", "SR", None),
    "SOPClassUID": (uid.CTImageStorage, uid.SegmentationStorage, uid.SecondaryCaptureImageStorage),
    "PhotometricInterpretation": ("MONOCHROME1", "RGB"),
    "BitsAllocated": (8, 1, 32),
    "PixelRepresentation": (0, 7),
    "NumberOfFrames": ("2", "0", "-1"),
    "Rows": (0, 1, 6, 65535),
    "Columns": (3, 65535),
    "RescaleSlope": ("0", "1e300", "-2"),
    "PixelPaddingValue": (0, 700, None),
    "PixelPaddingRangeLimit": (0, 4464),
    "AcquisitionNumber": (1, 2),
    "EchoTime": ("10", "20"),
    "TriggerTime": ("0", "50"),
    "DiffusionBValue": (0.0, 1000.0),
    "BodyPartExamined": ("HEAD", "BRAIN\\SKULL"),
    "SequenceName": ("*tfl3d1", "ep2d_diff"),
}
"""Attributes and values that the checks of a series tell apart; None leaves the attribute out."""


def _edited_slices(rng: random.Random) -> list[bytes]:
    """Return a series of which some images, a half or all, have other attributes; some stand twice or not at all."""
    images = [_image(k, uid.ExplicitVRLittleEndian) for k in range(_ARRAY.shape[2])]
    images += [_image(k, uid.ExplicitVRLittleEndian) for k in range(len(images)) if rng.random() < 0.1]
    del images[rng.randrange(len(images)) : rng.choice((0, 0, len(images)))]
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(list(_EDITS))
        share = rng.choice((0.2, 0.5, 1.0))
        for image in images:
            if rng.random() < share:
                value = rng.choice(_EDITS[name])
                if value is None and name in image:
                    delattr(image, name)
                elif value is not None:
                    with suppress(ValueError, OverflowError):  # pydicom writes no such value; `_changed` does
                        setattr(image, name, value)
    saved = []
    for image in images:
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        with suppress(OSError):  # a negative padding in an unsigned image
            saved.append(_saved(image))
    return [*saved, b"text"] if rng.random() < 0.2 else saved


def _renamed(packed: bytes, rng: random.Random) -> bytes:
    """Return a zip with other names, flags or methods in its directory, now and then."""
    if rng.random() < 0.8:
        return packed
    old = f"{CANARY}/0000".encode()
    for name in (b"../" + b"x" * (len(old) - 3), b"/" + b"x" * (len(old) - 1), f"{CANARY}/0001".encode()):
        if rng.random() < 0.3:
            packed = packed.replace(old, name)
    at = packed.find(b"PK\x01\x02")
    place = at + rng.choice((8, 10, 38, 40, 42, 20, 24))
    return packed[:place] + rng.randbytes(2) + packed[place + 2 :]


def _changed(content: bytes, rng: random.Random, *, text: bool = False) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        change = rng.choice(_TEXT_CHANGES if text else _CHANGES)
        content = change(content, rng)
    return content


def _place(content: bytes, rng: random.Random) -> int:
    end = len(content) if rng.random() < 0.25 else min(len(content), _HEADER_BYTES)
    return rng.randrange(max(end, 1))


def _byte(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))]) + content[at + 1 :]


def _bit(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else content


def _number(content: bytes, rng: random.Random) -> bytes:
    order, at = rng.choice("<>"), _place(content, rng) & ~1
    kind = rng.choice("hHiIqQfd")
    if kind in "fd":
        value = rng.choice(_FLOATS)
        packed = struct.pack(
            order + kind, max(min(value, 3e38), -3e38) if kind == "f" and abs(value) < 1e309 else value
        )
    else:
        bits = 8 * struct.calcsize(kind)
        packed = (rng.choice(_INTEGERS) % (1 << bits)).to_bytes(bits // 8, "little" if order == "<" else "big")
    return content[:at] + packed + content[at + len(packed) :]


def _cut(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + content[at + rng.choice((1, 2, 4, 16, 200, len(content))) :]


def _repeated(content: bytes, rng: random.Random) -> bytes:
    at, size = _place(content, rng), rng.choice((1, 4, 32, 400))
    return content[:at] + content[at : at + size] * rng.choice((2, 3, 50)) + content[at + size :]


def _inserted(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng)
    return content[:at] + rng.randbytes(rng.choice((1, 3, 8, 64))) + content[at:]


def _moved(content: bytes, rng: random.Random) -> bytes:
    one, other, size = _place(content, rng), _place(content, rng), rng.choice((2, 4, 8, 64))
    piece = content[one : one + size]
    return content[:other] + piece + content[other + len(piece) :]


def _word(content: bytes, rng: random.Random) -> bytes:
    words = list(re.finditer(rb"[^\s:=,()]+", content[:_HEADER_BYTES]))
    if not words:
        return content
    at = rng.choice(words)
    return content[: at.start()] + rng.choice(_WORDS).encode() + content[at.end() :]


def _line(content: bytes, rng: random.Random) -> bytes:
    lines = content.split(b"\n")
    one, other = rng.randrange(min(len(lines), 16)), rng.randrange(min(len(lines), 16))
    if rng.random() < 0.5:
        lines[one], lines[other] = lines[other], lines[one]
    else:
        lines.insert(other, lines[one])
    return b"\n".join(lines)


_CHANGES: Final = (_byte, _bit, _bit, _number, _number, _number, _cut, _repeated, _inserted, _moved)
_TEXT_CHANGES: Final = (_word, _word, _word, _word, _line, _line, _byte, _cut, _repeated)
