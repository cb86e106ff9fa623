"""A finished job's logits -> probabilities, uncertainty or confidence of every voxel as NIfTI, slab by slab.

The code is the pipeline's own (`service.pipeline.predict`), so a figure computed later is the same figure. The
probabilities are never whole in memory: they are written to a scratch file and compressed from there. Needs torch:
the API runs it in a process of its own (`service.executors.on_demand`).
"""

import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from isal import igzip

from service.pipeline.grid import grid_of
from service.pipeline.predict import probability_slabs
from service.result.frame import Frame, read_frame
from service.result.logits import read_logits
from service.result.nifti import Content, VoxelType, map_header, to_codes

Slab: TypeAlias = npt.NDArray[np.float32]


_GZIP_LEVEL: Final = 1
_CHUNK_BYTES: Final = 1 << 20
_SMALLEST: Final = np.finfo(np.float32).tiny


def slabs_of(result: Path, frame: Frame) -> Iterator[tuple[slice, Slab]]:
    """Yield the calibrated probabilities of a result as `probability_slabs` does; declared padding is background."""
    slabs = probability_slabs(torch.from_numpy(read_logits(result)), grid_of(frame), frame.config)
    nothing = frame.nothing
    if nothing is None:
        yield from slabs
        return
    nothing = nib.orientations.apply_orientation(nothing, frame.orientation)
    for window, probs in slabs:
        probs[0][nothing[window]] = 1
        probs[1:, nothing[window]] = 0
        yield window, probs


def write_map(result: Path, out: Path, content: Content, voxel_type: VoxelType) -> None:
    """Write one .nii.gz on the scan's grid: 4-D with a volume per class for probabilities, 3-D otherwise.

    Args:
        result: folder with the logits and the frame.
        out: file to write; a scratch file of the unpacked size lies beside it for a while.
        content: of the voxels.
        voxel_type: of the voxels.
    """
    frame = read_frame(result)
    classes = len(frame.config.labels)
    volumes = classes if content == "probabilities" else 1
    least = 1 / classes if content == "confidence" else 0.0
    head = map_header(frame.scan_header, voxel_type, volumes)
    scratch = out.with_name(f"{out.name}.scratch")
    with scratch.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + volumes * math.prod(frame.scan_shape) * np.dtype(voxel_type).itemsize)
    voxels = np.memmap(scratch, voxel_type, "r+", len(head), (*frame.scan_shape, volumes), "F")
    views = [nib.orientations.apply_orientation(voxels[..., v], frame.orientation) for v in range(volumes)]
    for window, probs in slabs_of(result, frame):
        for view, values in zip(views, _CONTENTS[content](probs), strict=True):
            view[window] = to_codes(values, voxel_type, least=least)
            # Release written pages: they count as memory of this process otherwise.
            voxels.base.madvise(mmap.MADV_DONTNEED)  # type: ignore[union-attr]  # the mmap below a memmap
    del views, voxels
    _compress(scratch, out)
    scratch.unlink()


def normalised_entropy(probs: Slab) -> Slab:
    """Return ``-sum_c p_c ln p_c / ln C``, (...) in [0, 1]: 0 where one class is certain, 1 where all are equal.

    Args:
        probs: (C, ...) summing to 1 over C; 0 ln 0 counts as 0.
    """
    entropy = -(probs * np.log(np.maximum(probs, _SMALLEST))).sum(axis=0)
    return np.clip(entropy / np.float32(math.log(len(probs))), 0, 1)


_CONTENTS: Final[dict[Content, Callable[[Slab], Slab]]] = {
    "probabilities": lambda probs: probs,
    "uncertainty": lambda probs: normalised_entropy(probs)[np.newaxis],
    "confidence": lambda probs: probs.max(axis=0, keepdims=True),
}
"""Functions from probabilities, (C, planes, H, W), to the content of a map, (volumes, planes, H, W)."""


def _compress(scratch: Path, out: Path) -> None:
    with (
        scratch.open("rb") as unpacked,
        out.open("wb") as file,
        igzip.IGzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as packed,
    ):
        while chunk := unpacked.read(_CHUNK_BYTES):
            packed.write(chunk)
