import gzip
import io

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from service.bundle.schema import ServiceConfig
from service.intake.formats import mgh
from service.result.frame import Frame
from service.result.mgz import encode_mgz

PERMUTED = np.array([[0, 0, -1.5, 70], [-1, 0, 0, 31.5], [0, 2, 0, -12.25], [0, 0, 0, 1]])
TURNED = np.array([[0.866, -0.75, 0, -1 / 3], [0.5, 1.299, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1]])

MASK = (np.arange(120).reshape(4, 5, 6) * 7 % 11 % 3).astype(np.uint8)


@pytest.mark.parametrize("affine", [TURNED, PERMUTED], ids=["oblique", "permuted and flipped"])
def test_two_readers_find_the_mask_in_its_place(affine: npt.NDArray[np.float64], tiny_config: ServiceConfig) -> None:
    """Nibabel and our own reader get the label values, as uint8, and the affine."""
    frame = Frame(
        scan_shape=(4, 5, 6), orientation=[(0, 1), (1, 1), (2, 1)], oriented_shape=(4, 5, 6), network_shape=(4, 5, 6),
        step=(1, 1, 1), affine=affine.tolist(), header="", config=tiny_config,
    )  # fmt: skip

    content = encode_mgz(MASK, frame)

    image = nib.freesurfer.mghformat.MGHImage.from_bytes(gzip.decompress(content))
    volume = mgh.decode(io.BytesIO(content))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), MASK)
    np.testing.assert_array_equal(volume.array_CDHW[0], MASK)
    for found in (image.affine, volume.affine):
        np.testing.assert_allclose(found, affine, atol=1e-4)
    assert encode_mgz(MASK, frame) == content
