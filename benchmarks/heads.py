"""Segments real whole heads stored in many ways and compares the results; `python benchmarks/whole_heads.py` runs it.

Three heads (nilearn's MNI152 template, `whole_head/*.nii.gz`) are stored in a dozen ways each and segmented by the shipped
model as in the service; each result is compared with that of the original file. Scans without a hippocampus must be refused.
No expert labels of whole heads are available, so this does not measure accuracy, only that storage does not matter.
`--registration` also finds the hippocampi by affine registration of the template (SimpleITK). Exit code 1 if a limit is
exceeded.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK
import torch
from scipy.ndimage import affine_transform, binary_dilation, gaussian_filter

from service.bundle.reader import LoadedBundle
from service.bundle.registry import SHIPPED
from service.commands.demo import SIDES, template
from service.engines.ready import ready_bundle
from service.errors import CalibrantError
from service.pipeline.locate import coarse, fit_pose, landmarks_of
from service.pipeline.run import run_case
from service.result.files import MASK
from service.volume import Volume

DISTANCE_MM = 5.0
"""Largest accepted distance between the centres of a hippocampus in the original and in another file."""

VOLUME = 0.15
"""Largest accepted relative change of its volume."""

DEGREES = 20
ABOVE_MM = 5.0
CENTRES_MM = {"left": (-27.0, -22.0, -14.0), "right": (27.0, -22.0, -14.0)}
"""Approximate middle of each hippocampus in MNI space (RAS), for the registration."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """A head as a file holds it.

    Args:
        array: (i, j, k) intensities.
        affine: (4, 4) voxel index to RAS millimetres.
        moved: (4, 4) RAS millimetres of the original head to those of this scan.
    """

    array: npt.NDArray[np.float32]
    affine: Array
    moved: Array

    @classmethod
    def read(cls, path: Path) -> "Scan":
        """Return the head of an original file."""
        image = nib.Nifti1Image.from_filename(path)
        return cls(np.asarray(image.dataobj, np.float32), np.asarray(image.affine, np.float64), np.eye(4))

    @property
    def spacing_mm(self) -> Array:
        """Voxel spacing along the three axes, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def on(self, affine: Array, shape: tuple[int, ...]) -> "Scan":
        """Return the same head on another grid, by trilinear interpolation."""
        to_index = np.linalg.inv(self.affine) @ affine
        array = affine_transform(self.array, to_index[:3, :3], to_index[:3, 3], shape, order=1)
        return Scan(array, affine, self.moved)

    def part(self, low: Array, high: Array) -> "Scan":
        """Return the voxels from one index to another."""
        low, high = np.maximum(low, 0).astype(int), np.minimum(high, self.array.shape).astype(int)
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ low
        return Scan(self.array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], affine, self.moved)


def flipped(scan: Scan) -> Scan:
    """Return the head stored along the reversed first and second axes."""
    flip = np.diag([-1.0, -1, 1, 1])
    flip[:2, 3] = np.array(scan.array.shape[:2]) - 1
    return Scan(scan.array[::-1, ::-1], scan.affine @ flip, scan.moved)


def permuted(scan: Scan) -> Scan:
    """Return the head with its axes in another order."""
    return Scan(scan.array.transpose(2, 0, 1), scan.affine[:, [2, 0, 1, 3]], scan.moved)


def turned(axis: int) -> Callable[[Scan], Scan]:
    """Return the function that turns the head in the scanner by 20 degrees about an axis of the patient."""

    def turn(scan: Scan) -> Scan:
        motion = _about_middle(scan, axis)
        return Scan(scan.array, motion @ scan.affine, motion)

    return turn


def oblique(axis: int) -> Callable[[Scan], Scan]:
    """Return the function that scans the unmoved head along axes turned by 20 degrees."""
    return lambda scan: scan.on(_about_middle(scan, axis) @ scan.affine, scan.array.shape)


def spaced(*target_mm: float) -> Callable[[Scan], Scan]:
    """Return the function that stores larger voxels, given along R-L, A-P and I-S; 0 keeps the spacing."""

    def space(scan: Scan) -> Scan:
        along = nib.orientations.io_orientation(scan.affine)[:, 0].astype(int)
        factor = np.maximum(np.array(target_mm)[along] / scan.spacing_mm, 1)
        smooth = gaussian_filter(scan.array, np.where(factor > 1, 0.42 * factor, 0))
        grid = np.diag([*factor, 1])
        grid[:3, 3] = (factor - 1) / 2
        shape = tuple(int(n // f) for n, f in zip(scan.array.shape, factor, strict=True))
        return Scan(smooth, scan.affine, scan.moved).on(scan.affine @ grid, shape)

    return space


def noisy(scan: Scan) -> Scan:
    """Return the head with added noise of 5 % of the 99th percentile."""
    noise = np.random.default_rng(0).normal(0, 0.05 * np.percentile(scan.array, 99), scan.array.shape)
    return Scan((scan.array + noise).clip(0).astype(np.float32), scan.affine, scan.moved)


VARIATIONS: dict[str, Callable[[Scan], Scan]] = {
    "flipped axes": flipped,
    "permuted axes": permuted,
    **{f"turned about {name}": turned(axis) for axis, name in enumerate("xyz")},
    **{f"oblique about {name}": oblique(axis) for axis, name in enumerate("xyz")},
    "2 mm voxels": spaced(2, 2, 2),
    **{
        f"3 mm slices, {name}": spaced(*edges)
        for name, edges in (("sagittal", (3, 0, 0)), ("coronal", (0, 3, 0)), ("axial", (0, 0, 3)))
    },
    "noise": noisy,
}


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Result of a scan: centre (RAS millimetres of the original head) and volume of each side, and seconds of locating."""

    centre_mm: dict[str, Array]
    volume_ml: dict[str, float]
    seconds: float


def segment(bundle: LoadedBundle, scan: Scan, work: Path) -> Found | CalibrantError:
    """Return the service's result for a scan, or the error with which it refuses it."""
    nib.openers.Opener.default_compresslevel = 1
    nib.save(nib.Nifti1Image(scan.array, scan.affine), work / "scan.nii.gz")
    out = Path(tempfile.mkdtemp(dir=work))
    try:
        result = run_case(work / "scan.nii.gz", bundle, out, lambda _stage, _done: None, ["mask"])
    except CalibrantError as error:
        return error
    image = nib.Nifti1Image.from_filename(out / MASK)
    mask, to_mm = np.asarray(image.dataobj), np.linalg.inv(scan.moved) @ image.affine
    centres = {
        side: nib.affines.apply_affine(to_mm, np.argwhere(np.isin(mask, labels)).mean(axis=0))
        for side, labels in SIDES.items()
        if np.isin(mask, labels).any()
    }
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    volumes = {side: float(np.isin(mask, labels).sum()) * voxel_ml for side, labels in SIDES.items()}
    return Found(centres, volumes, result.seconds.get("locate", 0.0))


def brains(bundle: LoadedBundle, heads: dict[str, Scan]) -> dict[str, npt.NDArray[np.bool_]]:
    """Return a brain mask of each head: the template's, moved by the landmarks' pose and dilated by 3 mm."""
    atlas = heads["MNI152"]
    inside = binary_dilation(atlas.array > 0, iterations=3).astype(np.float32)
    to_atlas = _pose(bundle, atlas)
    masks = {}
    for name, scan in heads.items():
        into_atlas = to_atlas @ np.linalg.inv(_pose(bundle, scan))
        grid = np.linalg.inv(atlas.affine) @ into_atlas @ scan.affine
        masks[name] = affine_transform(inside, grid[:3, :3], grid[:3, 3], scan.array.shape, order=0) > 0
    return masks


def variations(brain: npt.NDArray[np.bool_]) -> Iterator[tuple[str, Callable[[Scan], Scan]]]:
    """Yield the name of each way to store a head, and the function that stores it so."""
    yield from VARIATIONS.items()
    index = np.argwhere(brain)
    yield "the brain's box", lambda scan: scan.part(index.min(axis=0), index.max(axis=0) + 1)
    yield "without skull", lambda scan: Scan(np.where(brain, scan.array, 0), scan.affine, scan.moved)


def cut_above(scan: Scan, found: Found) -> Scan:
    """Return the head without the planes below the top of its hippocampi."""
    axis = int(np.abs(scan.affine[2, :3]).argmax())
    highest = max(float(centre[2]) for centre in found.centre_mm.values()) + 15 + ABOVE_MM
    plane = (highest - scan.affine[2, 3]) / scan.affine[2, axis]
    low, high = np.zeros(3), np.array(scan.array.shape, float)
    (low if scan.affine[2, axis] > 0 else high)[axis] = round(plane)
    return scan.part(low, high)


def without_hippocampus(data: Path, cut: dict[str, Scan]) -> Iterator[tuple[str, Scan]]:
    """Yield scans without a hippocampus, with their names."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(data / "chaos_ct_dicom" / "DICOM_anon")))
    with tempfile.TemporaryDirectory() as folder:
        SimpleITK.WriteImage(reader.Execute(), f"{folder}/abdomen.nii.gz")
        yield "abdomen CT", Scan.read(Path(folder) / "abdomen.nii.gz")
    for path in sorted((data / "sct_testing").glob("*/t[12]*.nii.gz")):
        if not any(word in path.name for word in ("seg", "lesion")):
            yield f"spine {path.name}", Scan.read(path)
    for path in sorted((data / "ACDC" / "database" / "training").glob("patient00[1-3]/*01.nii.gz")):
        yield f"heart {path.name}", Scan.read(path)
    for name, scan in cut.items():
        yield f"{name}, cut off above", scan


def registered(scan: Scan, work: Path) -> dict[str, Array]:
    """Return where an affine registration of the template (Mattes mutual information at 3 mm) puts the hippocampi."""
    nib.save(nib.Nifti1Image(scan.array, scan.affine), work / "moving.nii.gz")
    fixed, moving = (
        _at_3_mm(SimpleITK.ReadImage(str(path), SimpleITK.sitkFloat32)) for path in (template(), work / "moving.nii.gz")
    )
    registrations: list[tuple[float, SimpleITK.Transform]] = []
    for start in (
        SimpleITK.CenteredTransformInitializerFilter.MOMENTS,
        SimpleITK.CenteredTransformInitializerFilter.GEOMETRY,
    ):
        transform = SimpleITK.CenteredTransformInitializer(fixed, moving, SimpleITK.AffineTransform(3), start)
        method = SimpleITK.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.01, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(fixed, moving)
        registrations.append((method.GetMetricValue(), transform))
    _, best = min(registrations, key=lambda registration: registration[0])
    to_lps = np.array([-1.0, -1, 1])
    return {
        side: np.array(best.TransformPoint((to_lps * centre).tolist())) * to_lps for side, centre in CENTRES_MM.items()
    }


def main() -> int:
    """Print the tables and return 1 if a limit is exceeded."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    bundle = ready_bundle(arguments.bundle, torch.device("cpu"))
    paths = {"MNI152": template()} | {
        path.name.removesuffix(".nii.gz"): path for path in sorted((arguments.data / "whole_head").glob("*.nii.gz"))
    }
    heads = {name: Scan.read(path) for name, path in paths.items()}
    misses: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        seconds, cut = _print_variations(bundle, heads, work, misses, each_once=arguments.each_once)
        print(f"\nlocate: median {np.median(seconds):.2f} s, most {max(seconds):.2f} s, {arguments.threads} threads\n")
        if np.median(seconds) > arguments.locate_s:
            misses.append("locate takes too long")
        for name, scan in without_hippocampus(arguments.data, cut):
            answer = segment(bundle, scan, work)
            refused = isinstance(answer, CalibrantError) and answer.code == "anatomy-not-found"
            print(f"{name:28} {answer.detail if isinstance(answer, CalibrantError) else 'SEGMENTED'}")
            if not refused:
                misses.append(name)
        if arguments.registration:
            _print_routes(bundle, heads, work)
    print(f"\n{len(misses)} limits exceeded" + "".join(f"\n  {miss}" for miss in misses))
    return bool(misses)


def _print_variations(
    bundle: LoadedBundle, heads: dict[str, Scan], work: Path, misses: list[str], *, each_once: bool
) -> tuple[list[float], dict[str, Scan]]:
    """Print the table of every head in every file; return the seconds of locating and the heads cut off above."""
    seconds: list[float] = []
    cut: dict[str, Scan] = {}
    inside = brains(bundle, heads)
    print(f"{'head':10} {'stored':20} {'left: mm':>9} {'volume':>8} {'right: mm':>9} {'volume':>8} {'locate':>8}")
    for name, scan in heads.items():
        original = segment(bundle, scan, work)
        if isinstance(original, CalibrantError):
            print(f"{name:10} refused: {original.detail}")
            misses.append(f"{name} unmodified")
            continue
        seconds.append(original.seconds)
        cut[name] = cut_above(scan, original)
        volumes = " ".join(f"{'':>9} {original.volume_ml[side]:5.2f} ml" for side in SIDES)
        print(f"{name:10} {'unmodified':20} {volumes} {original.seconds:6.2f} s")
        if not original.centre_mm["left"][0] < original.centre_mm["right"][0]:
            misses.append(f"{name}: left is not left")
        ways = list(variations(inside[name]))
        for stored, vary in ways[len(cut) % len(heads) :: len(heads)] if each_once else ways:
            seconds += _compared(f"{name:10} {stored:20}", original, segment(bundle, vary(scan), work), misses)
    return seconds, cut


def _compared(row: str, before: Found, after: Found | CalibrantError, misses: list[str]) -> list[float]:
    """Print how far a variation's result is from the original's, and return the seconds of locating."""
    if isinstance(after, CalibrantError):
        print(f"{row} refused: {after.detail}")
        misses.append(row)
        return []
    cells = []
    for side in SIDES:
        if side not in after.centre_mm:
            cells.append(f"{'absent':>18}")
            misses.append(row)
            continue
        distance = float(np.linalg.norm(after.centre_mm[side] - before.centre_mm[side]))
        change = after.volume_ml[side] / before.volume_ml[side] - 1
        cells.append(f"{distance:9.1f} {change:+8.1%}")
        if distance > DISTANCE_MM or abs(change) > VOLUME:
            misses.append(row)
    print(f"{row} {' '.join(cells)} {after.seconds:6.2f} s", flush=True)
    return [after.seconds]


def _print_routes(bundle: LoadedBundle, heads: dict[str, Scan], work: Path) -> None:
    print("\ndistance between the two routes: centre of the mask, and the template's hippocampus after registration")
    for name, scan in heads.items():
        result = segment(bundle, scan, work)
        started = time.monotonic()
        other = registered(scan, work)
        taken = time.monotonic() - started
        if isinstance(result, Found):
            apart = {side: float(np.linalg.norm(result.centre_mm[side] - other[side])) for side in SIDES}
            print(f"{name:10} left {apart['left']:5.1f} mm, right {apart['right']:5.1f} mm; registration {taken:.1f} s")


def _pose(bundle: LoadedBundle, scan: Scan) -> Array:
    """Return the matrix from the locator's reference frame to a head."""
    locator, network = bundle.description.config.locator, bundle.locator
    if locator is None or network is None:
        sys.exit("The bundle has no locator.")
    image, grid = coarse(Volume(scan.array[np.newaxis], scan.affine, b""), locator.spacing_mm)
    pose = fit_pose(landmarks_of(network, image, grid, locator), locator)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = pose.scale * pose.rotation, pose.origin_mm
    return matrix


def _about_middle(scan: Scan, axis: int) -> Array:
    """Return the rotation by 20 degrees about an axis of the patient through the middle of the scan."""
    a, b = (other for other in range(3) if other != axis)
    angle = np.radians(DEGREES)
    rotation = np.eye(4)
    rotation[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    middle = nib.affines.apply_affine(scan.affine, (np.array(scan.array.shape) - 1) / 2)
    rotation[:3, 3] = middle - rotation[:3, :3] @ middle
    return rotation


def _at_3_mm(image: SimpleITK.Image) -> SimpleITK.Image:
    size = [max(round(n * mm / 3), 1) for n, mm in zip(image.GetSize(), image.GetSpacing(), strict=True)]
    spacing = [n * mm / m for n, mm, m in zip(image.GetSize(), image.GetSpacing(), size, strict=True)]
    smooth = SimpleITK.SmoothingRecursiveGaussian(image, 1.5)
    return SimpleITK.Resample(
        smooth, size, SimpleITK.Transform(), SimpleITK.sitkLinear, image.GetOrigin(), spacing, image.GetDirection()
    )


def _arguments() -> argparse.Namespace:
    default = Path(__file__).parents[2] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("CALIBRANT_DATA", default)))
    parser.add_argument("--bundle", type=Path, default=SHIPPED / "hippocampus-mr")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--locate-s", type=float, default=1.5, help="limit of the median time of finding the hippocampi"
    )
    parser.add_argument("--each-once", action="store_true", help="store in each way one of the heads, not all of them")
    parser.add_argument("--registration", action="store_true", help="also find the hippocampi by registration")
    return parser.parse_args()
