from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.bundle.schema import ServiceConfig
from service.result.files import FRAME
from service.result.frame import Frame, encode_padding, read_frame


@pytest.fixture(name="frame")
def frame_(tiny_config: ServiceConfig) -> Frame:
    """Return a frame with numbers that float32 cannot represent."""
    return Frame(
        scan_shape=(2, 3, 4),
        orientation=[(2, -1), (0, 1), (1, 1)],
        oriented_shape=(3, 4, 2),
        network_shape=(3, 5, 2),
        step=(1, 1, 1),
        affine=[[0, 0.1, 0, -1 / 3], [0, 0, 0.7, 5], [-0.3, 0, 0, 9], [0, 0, 0, 1]],
        header=bytes(348).hex(),
        config=tiny_config,
    )


def test_a_frame_comes_back_to_the_last_bit(frame: Frame, tmp_path: Path) -> None:
    """The JSON file keeps every float64 of the affine, the header's bytes and the bundle's configuration."""
    (tmp_path / FRAME).write_text(frame.model_dump_json())

    actual = read_frame(tmp_path)

    assert actual == frame
    assert actual.affine_ras[0, 3] == -1 / 3
    assert actual.scan_header == bytes(348)
    assert actual.values == [0, 1, 2]


def test_a_frame_with_an_unknown_field_is_refused(frame: Frame) -> None:
    """A frame of a later version must not be misread."""
    with pytest.raises(ValidationError, match="extra_forbidden"):
        Frame.model_validate(frame.model_dump() | {"shear": 1})


def test_the_affine_is_float64(frame: Frame) -> None:
    """Affines are not rounded to the float32 of NIfTI's header."""
    assert frame.affine_ras.dtype == np.float64


def test_declared_padding_comes_back_voxel_by_voxel(frame: Frame, tmp_path: Path) -> None:
    """Flags survive the file, whatever their number is modulo 8; a frame without them has none."""
    for shape in ((2, 3, 4), (3, 5, 7), (1, 1, 9)):
        padding = np.random.default_rng(3).random(shape) < 0.5
        padded = frame.model_copy(update={"scan_shape": shape, "padding": encode_padding(padding)})
        (tmp_path / FRAME).write_text(padded.model_dump_json())

        actual = read_frame(tmp_path).nothing

        assert actual is not None
        np.testing.assert_array_equal(actual, padding)
    assert frame.nothing is None


def test_the_padding_of_a_round_field_of_view_is_small() -> None:
    """A slice of 512 x 512 voxels takes less than 3 kB, not the 262 kB of its flags."""
    i, j = np.indices((512, 512))
    disc = np.hypot(i - 256, j - 256) > 250
    padding = np.broadcast_to(disc[..., np.newaxis], (512, 512, 60))

    assert len(encode_padding(padding)) < 60 * 3000
