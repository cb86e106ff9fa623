import io
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
import slicerio

from service.bundle.description import describe_bundle
from service.bundle.registry import SHIPPED
from service.bundle.schema import ServiceConfig
from service.intake.decode import decode_scan
from service.result.frame import Frame
from service.result.segnrrd import encode_segmentation

PERMUTED = np.array([[0, 0, -1.5, 70], [-1, 0, 0, 31.5], [0, 2, 0, -12.25], [0, 0, 0, 1]])
TURNED = np.array([[0.866, -0.75, 0, -1 / 3], [0.5, 1.299, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])

MASK = (np.arange(120).reshape(4, 5, 6) * 7 % 11 % 3).astype(np.uint8)


@pytest.fixture(name="shipped")
def shipped_() -> ServiceConfig:
    """Return the configuration of the shipped bundle."""
    return describe_bundle(SHIPPED / "hippocampus-mr").config


def frame_of(config: ServiceConfig, affine: npt.NDArray[np.float64], shape: tuple[int, int, int] = (4, 5, 6)) -> Frame:
    """Return the frame of a scan."""
    return Frame(
        scan_shape=shape, orientation=[(0, 1), (1, 1), (2, 1)], oriented_shape=shape, network_shape=shape, step=(1, 1, 1),
        affine=affine.tolist(), header="", config=config,
    )  # fmt: skip


def saved(content: bytes, folder: Path) -> str:
    """Write the file."""
    path = folder / "mask.seg.nrrd"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("affine", [TURNED, PERMUTED], ids=["oblique", "permuted and flipped"])
def test_three_readers_find_the_mask_in_its_place(
    affine: npt.NDArray[np.float64], shipped: ServiceConfig, tmp_path: Path
) -> None:
    """slicerio, pynrrd, SimpleITK and our own reader get the voxels and the affine in LPS."""
    path = saved(encode_segmentation(MASK, frame_of(shipped, affine)), tmp_path)
    lps = np.diag([-1.0, -1, 1, 1]) @ affine

    segmentation = slicerio.read_segmentation(path)
    assert np.array_equal(segmentation["voxels"], MASK)
    assert np.array_equal(segmentation["ijkToLPS"], lps)

    voxels, header = nrrd.read(path)
    assert np.array_equal(voxels, MASK)
    assert header["space"] == "left-posterior-superior"
    assert np.array_equal(header["space directions"].T, lps[:3, :3])
    assert np.array_equal(header["space origin"], lps[:3, 3])

    image = SimpleITK.ReadImage(path)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, MASK)
    for corner in ((0, 0, 0), (3, 0, 0), (0, 4, 5), (3, 4, 5)):
        place = image.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(place, (lps @ [*corner, 1])[:3], atol=1e-12)

    np.testing.assert_allclose(decode_scan(Path(path)).affine, affine, atol=1e-12)


def test_segments_carry_names_colours_and_codes(shipped: ServiceConfig, tmp_path: Path) -> None:
    """Segments have the bundle's names, colours and SNOMED CT codes with modifiers."""
    segments: list[dict[str, Any]] = slicerio.read_segmentation(
        saved(encode_segmentation(MASK, frame_of(shipped, TURNED)), tmp_path)
    )["segments"]

    assert [(segment["labelValue"], segment["name"]) for segment in segments] == [
        (1, "anterior hippocampus"),
        (2, "posterior hippocampus"),
    ]
    assert np.allclose(segments[0]["color"], [230 / 255, 159 / 255, 0], atol=1e-6)
    assert segments[1]["terminology"]["category"] == ["SCT", "123037004", "Anatomical Structure"]
    assert segments[1]["terminology"]["type"] == ["SCT", "5366008", "Hippocampus"]
    assert segments[1]["terminology"]["typeModifier"] == ["SCT", "255551008", "Posterior"]
    assert [segment["extent"] for segment in segments] == [[0, 3, 0, 4, 0, 5]] * 2


def test_a_label_without_a_code_has_no_terminology(tiny_config: ServiceConfig, tmp_path: Path) -> None:
    """No concept is invented if the bundle names none."""
    path = saved(encode_segmentation(MASK, frame_of(tiny_config, TURNED)), tmp_path)

    assert all("terminology" not in segment for segment in slicerio.read_segmentation(path)["segments"])


def test_the_same_mask_gives_the_same_bytes(shipped: ServiceConfig) -> None:
    """Pynrrd's comment with the time of writing is removed."""
    content = encode_segmentation(MASK, frame_of(shipped, TURNED))

    assert content.startswith(b"NRRD0005\ntype: uint8\n")
    assert b"pynrrd" not in content
    assert nrrd.read_header(io.BytesIO(content))["encoding"] == "gzip"


def test_real_scans_keep_their_place(spinal_cord: Path, shipped: ServiceConfig, tmp_path: Path) -> None:
    """SimpleITK sees the corners of mask and scan at the same place, within float32's rounding."""
    paths = sorted(spinal_cord.rglob("*.nii.gz"))
    assert len(paths) >= 10

    for path in paths:
        volume = decode_scan(path)
        frame = frame_of(shipped, volume.affine, volume.shape)
        image = SimpleITK.ReadImage(saved(encode_segmentation(np.ones(volume.shape, np.uint8), frame), tmp_path))
        scan = SimpleITK.ReadImage(path)
        assert image.GetSize() == scan.GetSize()[:3]
        for corner in np.ndindex(2, 2, 2):
            index = [int(c * (n - 1)) for c, n in zip(corner, volume.shape, strict=True)]
            np.testing.assert_allclose(
                image.TransformIndexToPhysicalPoint(index), scan.TransformIndexToPhysicalPoint(index), atol=1e-3
            )
