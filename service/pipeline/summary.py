"""Mask, confidence and statement -> the image-level summary; and what of a scan the statement follows from."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from service.bundle.acceptance import EXTENTS, SIZES, VOXEL_SIZES, Judgement, judge_sizes
from service.bundle.card import CalibrationCard
from service.bundle.description import BundleDescription
from service.bundle.schema import Label
from service.bundle.statement import Findings, too_coarse
from service.calibration.histogram import BINS, bin_index
from service.calibration.shift import ShiftVerdict
from service.pipeline.border import labels_at_border
from service.pipeline.centre import Placement
from service.pipeline.grid import Grid
from service.pipeline.predict import Segmentation
from service.pipeline.tissue import Tissue
from service.schemas import Located, Statement, Structure, Summary
from service.volume import VOXEL_SIZE, Volume

NOT_VALIDATED: Final = (
    "The anatomy was located automatically in this scan. Locating was not validated against expert labels on whole "
    "scans: look whether the outline is in the right place."
)
"""Warning in every summary of located parts."""

DOUBTS: Final = {
    VOXEL_SIZE: "The scan's header holds two voxel sizes (see the warnings), so its sizes cannot be compared with those "
    "of the card's cases, and no volume can be stated."
}
"""Why the statement is withdrawn, by what a file contradicts itself about."""

_LOW_PERCENTILE: Final = 5


def summarise(
    segmentation: Segmentation,
    volume: Volume,
    bundle: BundleDescription,
    statement: Statement,
    placement: Placement | None = None,
    tissue: Tissue | None = None,
) -> Summary:
    """Return the summary of one segmented scan.

    Args:
        segmentation: mask and confidence.
        volume: the scan.
        bundle: the model.
        statement: the verdict on the answer.
        placement: of the located parts; None if the whole scan was segmented.
        tissue: what of the scan shows something; None if that was not looked for.
    """
    labels_of_result = (bundle.config.located if placement else bundle.config).labels[1:]
    missing = _labels_of_absent(bundle, placement) if placement else set()
    # Axes in memory order: no figure depends on it, but the time does.
    mask, confidences = segmentation.mask.T, segmentation.confidence.T
    box = _box_around(mask > 0)
    foreground = mask[box] > 0
    labels, confidence = mask[box][foreground], confidences[box][foreground]
    truncated = _truncated(segmentation, volume, tissue, {label.value for label in labels_of_result} - missing)
    voxel_ml = None if VOXEL_SIZE in volume.doubts else volume.voxel_ml
    structures = [
        _structure(label, confidence[labels == label.value], voxel_ml, truncated=label.value in truncated)
        for label in labels_of_result
        if label.value not in missing
    ]
    structures += [_not_found(label) for label in labels_of_result if label.value in missing]
    structures.sort(key=lambda structure: [label.value for label in labels_of_result].index(structure.label))
    withdrawn = statement.status == "withdrawn"
    return Summary(
        model=bundle.identity,
        structures=[structure.model_copy(update={"withdrawn": withdrawn}) for structure in structures],
        foreground_confidence=float(confidence.mean()) if confidence.size else None,
        located=_located(bundle, placement) if placement else None,
        statement=statement,
        warnings=[
            *volume.warnings,
            *(tissue.warnings if tissue else []),
            *(_warnings(placement) if placement else []),
        ],
    )


def findings_about(
    card: CalibrationCard,
    sizes: Mapping[str, float],
    judgement: Judgement,
    shift: ShiftVerdict | None,
    doubts: Iterable[str] = (),
    *,
    located: bool,
) -> Findings:
    """Return everything about a scan and its answer that the statement follows from.

    Args:
        card: of the bundle.
        sizes: of the scan, from `sizes_of`.
        judgement: on what the scan says about itself.
        shift: what the shift test says about the answer; None if there is none.
        doubts: of the scan.
        located: whether the answer is about parts that were located in a larger scan.
    """
    acceptance = card.accepted
    spacing = [sizes[name] for name in VOXEL_SIZES]
    resolution = None
    if judge_sizes(acceptance, sizes, VOXEL_SIZES):
        resolution = card.resolution_near(spacing)
    judged = SIZES if resolution is None else EXTENTS
    coarse = too_coarse(resolution) if resolution else None
    return Findings(
        reasons=(
            *judgement.reasons,
            *judge_sizes(acceptance, sizes, judged),
            *([coarse] if coarse else []),
            *(DOUBTS[doubt] for doubt in doubts),
        ),
        not_compared=judgement.not_compared,
        shift=shift,
        located=located,
        resolution=resolution,
    )


def sizes_of(
    volume: Volume, grid: Grid, placement: Placement | None = None, tissue: Tissue | None = None
) -> dict[str, float]:
    """Return field of view and voxel size in mm, which are compared with what is accepted, by the names of `SIZES`.

    The field of view of located parts is that of their boxes; otherwise it is that of what the scan shows, without padding.
    The voxel size is always that of the scan.
    """
    network_order = np.argsort(grid.orientation[:, 0])
    spacing = volume.spacing_mm[network_order]
    shown = np.array([side.stop - side.start for side in tissue.box(volume.shape)] if tissue else volume.shape)
    part = placement.placed[0].volume if placement else None
    extent = np.array(part.shape) * part.spacing_mm if part else shown[network_order] * spacing
    return dict(zip(SIZES, [*extent.tolist(), *spacing.tolist()], strict=True))


def _truncated(segmentation: Segmentation, volume: Volume, tissue: Tissue | None, sought: set[int]) -> set[int]:
    """Return the label values that may continue outside the scan; one that has no voxel may, if another one does.

    Args:
        segmentation: of the scan.
        volume: the scan.
        tissue: what of it shows something.
        sought: label values of the parts that were found.
    """
    mask = segmentation.mask
    shown = None if tissue is None else tissue.box(volume.shape)
    at_border = labels_at_border(mask, volume.spacing_mm, shown, volume.padding) & sought
    there = set(np.flatnonzero(np.bincount(mask.ravel(order="K"))).tolist())
    return at_border | (sought - there if at_border else set())


def _not_found(label: Label) -> Structure:
    return Structure(
        label=label.value,
        name=label.name,
        voxels=0,
        volume_ml=None,
        mean_confidence=None,
        found=False,
        confidence_histogram=[0] * BINS,
    )


def _labels_of_absent(bundle: BundleDescription, placement: Placement) -> set[int]:
    locator = bundle.config.locator
    parts = locator.parts if locator else []
    return {label.value for part in parts if part.name in placement.absent for label in part.labels}


def _located(bundle: BundleDescription, placement: Placement) -> list[Located]:
    located = {
        placed.part.name: Located(
            name=placed.part.name, centre_mm=_three(placed.centre_mm), size_mm=placed.part.size_mm, why_not=None
        )
        for placed in placement.placed
    }
    parts = bundle.config.locator.parts if bundle.config.locator else []
    return [
        located.get(part.name)
        or Located(name=part.name, centre_mm=None, size_mm=part.size_mm, why_not=placement.absent[part.name])
        for part in parts
    ]


def _warnings(placement: Placement) -> list[str]:
    absent = [f"{name} was not found and not segmented: {why}." for name, why in placement.absent.items()]
    return [NOT_VALIDATED, *absent]


def _three(point: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 2) for value in point)
    return x, y, z


def _structure(
    label: Label, confidence: npt.NDArray[np.float32], voxel_ml: float | None, *, truncated: bool
) -> Structure:
    voxels = confidence.size
    return Structure(
        label=label.value,
        name=label.name,
        voxels=voxels,
        volume_ml=None if truncated or voxel_ml is None else voxels * voxel_ml,
        mean_confidence=float(confidence.mean()) if voxels else None,
        p5_confidence=float(np.percentile(confidence, _LOW_PERCENTILE)) if voxels else None,
        truncated=truncated,
        confidence_histogram=np.bincount(bin_index(confidence), minlength=BINS).tolist(),
    )


def _box_around(mask: npt.NDArray[np.bool_]) -> tuple[slice, ...]:
    """Return the bounding box of the true voxels; an empty box if none is true."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (filled,) = np.nonzero(mask.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0))
    return tuple(box)
