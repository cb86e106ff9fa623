"""`frame.json` of a result: everything besides the logits that later computations on the scan's grid need.

By then bundle and scan may be gone, so neither is needed. The module imports no torch: the API reads this file.
"""

import base64
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from service.bundle.schema import Declaration, ServiceConfig
from service.result.files import FRAME


class PartFrame(Declaration):
    """Position of one located part on the scan's grid."""

    channels: list[int]
    """Class of the result for each output channel of the network."""
    to_part: list[list[float]]
    """(4, 4): voxel index of the scan in the network's axis order to voxel index of the part."""
    shape: tuple[int, int, int]
    """Voxels of the part."""


class Frame(Declaration):
    """Position of a case in the scan's file, on the network's grid and in the patient."""

    scan_shape: tuple[int, int, int]
    """Voxels along i, j and k in the scan's file."""
    orientation: list[tuple[int, int]]
    """Network axis and flip (1 or -1) of each scan axis, as in nibabel's orientations."""
    oriented_shape: tuple[int, int, int]
    """The scan's shape in the network's axis order."""
    network_shape: tuple[int, int, int]
    """Voxels after resampling."""
    step: tuple[float, float, float]
    """Scan voxels per network voxel, along the network's axes."""
    affine: list[list[float]]
    """(4, 4): voxel index (i, j, k, 1) of the scan to RAS millimetres."""
    header: str
    """NIfTI header of the scan without its free text, in hexadecimal."""
    config: ServiceConfig
    """`service.json` of the bundle: labels, colours, codes and temperatures; for located parts, the labels of all parts."""
    parts: tuple[PartFrame, ...] = ()
    """Parts that a locator found; empty if the network saw the whole scan."""
    padding: str | None = None
    """Voxels that the scan declares to show nothing, as `encode_padding` writes them; null if there are none."""

    @property
    def nothing(self) -> npt.NDArray[np.bool_] | None:
        """(D, H, W) declared padding in the axes of the scan's file; None if there is none."""
        if self.padding is None:
            return None
        bits = np.frombuffer(zlib.decompress(base64.b64decode(self.padding)), np.uint8)
        voxels = int(np.prod(self.scan_shape))
        return np.unpackbits(bits, count=voxels).view(np.bool_).reshape(self.scan_shape, order="F")

    @property
    def scan_header(self) -> bytes:
        """The NIfTI header that every image of this result repeats."""
        return bytes.fromhex(self.header)

    @property
    def affine_ras(self) -> npt.NDArray[np.float64]:
        """(4, 4) voxel index of the scan to RAS millimetres."""
        return np.array(self.affine, np.float64)

    @property
    def values(self) -> list[int]:
        """Label value of each class, background first."""
        return [label.value for label in self.config.labels]


def encode_padding(padding: npt.NDArray[np.bool_]) -> str:
    """Return flags as base64 of their zlib-compressed bits, i fastest: some 2 kB for each slice of a CT.

    Args:
        padding: (D, H, W) in the axes of the scan's file.
    """
    return base64.b64encode(zlib.compress(np.packbits(padding.ravel(order="F")).tobytes(), 1)).decode()


def read_frame(result: Path) -> Frame:
    """Return the frame of a result.

    Args:
        result: its folder.
    """
    return Frame.model_validate_json((result / FRAME).read_bytes())
