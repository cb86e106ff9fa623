import math
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.transforms import NormalizeIntensity, Orientation, Spacing
from monai.transforms.intensity.array import ScaleIntensityRange

from service.bundle.schema import RobustZScore, ServiceConfig, Window, ZScore
from service.errors import ConstantVolume, InvalidRequest, ScanError, VolumeTooLarge
from service.intake.decode import decode_scan
from service.intake.formats.geometry import FEW_VOXELS
from service.pipeline import preprocess as preprocess_module
from service.pipeline.grid import Grid
from service.pipeline.preprocess import (
    SLAB_VALUES,
    in_all_planes,
    labels_to_network_grid,
    preprocess,
    to_network_grid,
    to_scan_axes,
    to_scan_grid,
    to_scan_slabs,
)
from service.volume import Volume

AXES = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
"""The 48 ways in which the axes of a file can lie along the patient's axes."""

Affine = npt.NDArray[np.float64]


def affine_of(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...] = (1, 1, 1)) -> Affine:
    """Return the affine in which file axis n runs along patient axis order[n] in direction signs[n]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * spacing[axis]
    affine[:3, 3] = -7, 11, 13
    return affine


def volume_of(array: npt.NDArray[np.generic], affine: Affine | None = None) -> Volume:
    """Return a volume of one channel without a header, which is not needed here."""
    return Volume(array[np.newaxis], np.eye(4) if affine is None else affine, b"")


def phantom(*shape: int) -> npt.NDArray[np.float32]:
    """Return a volume in which no two voxels are equal."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(("order", "signs"), AXES, ids=str)
def test_every_orientation_becomes_the_networks(
    order: tuple[int, ...], signs: tuple[int, ...], config: Callable[..., ServiceConfig]
) -> None:
    """A voxel of the network's grid, here RAS, holds the intensity at the same place in the patient."""
    affine, array = affine_of(order, signs), phantom(2, 3, 4)
    grid = Grid.of(volume_of(array, affine), config(orientation="RAS"))

    actual = to_network_grid(array[np.newaxis], grid)[0].numpy()

    places = {tuple((affine @ [*index, 1])[:3]): array[index] for index in np.ndindex(array.shape)}
    low = np.min(list(places), axis=0)
    assert actual.shape == tuple(array.shape[order.index(axis)] for axis in range(3))
    assert all(actual[index] == places[tuple(low + index)] for index in np.ndindex(actual.shape))


@pytest.mark.parametrize(("order", "signs"), AXES, ids=str)
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "PIR"])
def test_there_and_back_is_the_identity(
    order: tuple[int, ...], signs: tuple[int, ...], axcodes: str, config: Callable[..., ServiceConfig]
) -> None:
    """A phantom is unchanged after conversion to the network's grid and back, for all orientations of file and network."""
    array = phantom(2, 3, 4)
    grid = Grid.of(volume_of(array, affine_of(order, signs)), config(orientation=axcodes))

    back = to_scan_grid(to_network_grid(array[np.newaxis], grid), grid)

    assert np.array_equal(back[0], array)
    assert back.flags.c_contiguous


@pytest.mark.parametrize(("order", "signs"), AXES[::5], ids=str)
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SAR", "PIR"])
def test_monai_orients_alike(
    order: tuple[int, ...], signs: tuple[int, ...], axcodes: str, config: Callable[..., ServiceConfig]
) -> None:
    """MONAI's Orientation gives the same array."""
    from monai.data import MetaTensor

    array, affine = phantom(2, 3, 4), affine_of(order, signs)
    grid = Grid.of(volume_of(array, affine), config(orientation=axcodes))
    labels = (("L", "R"), ("P", "A"), ("I", "S"))

    expected = Orientation(axcodes=axcodes, labels=labels)(
        MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))
    )

    assert np.array_equal(to_network_grid(array[np.newaxis], grid).numpy(), expected.numpy())


def test_half_a_step_is_the_mean_of_two_voxels(config: Callable[..., ServiceConfig]) -> None:
    """From 2 mm to 1 mm, 0, 10, 40 becomes 0, 5, 10, 25, 40."""
    array = np.broadcast_to(np.array([0, 10, 40], np.float32)[:, None, None], (3, 2, 2))
    grid = Grid.of(volume_of(array, np.diag([2.0, 1, 1, 1])), config())

    assert to_network_grid(array[np.newaxis], grid)[0, :, 0, 0].tolist() == [0, 5, 10, 25, 40]


@pytest.mark.parametrize("spacing", [(0.5, 0.5, 7.5), (2.0, 1.5, 0.7), (1.0, 1.0, 1.0), (3.0, 0.4, 1.1)])
def test_resampling_is_trilinear(spacing: tuple[float, ...], config: Callable[..., ServiceConfig]) -> None:
    """Voxels equal numpy's interpolation along one axis after another, in steps of 1 mm from the first voxel."""
    array = np.random.default_rng(3).normal(size=(7, 6, 5)).astype(np.float32)
    grid = Grid.of(volume_of(array, np.diag([*spacing, 1])), config())

    expected = array.astype(np.float64)
    for axis, (n, mm, new) in enumerate(zip(array.shape, spacing, grid.network_shape, strict=True)):
        at, known = np.arange(new) / mm, np.arange(n)
        lines = np.moveaxis(expected, axis, -1)
        interpolated = [np.interp(at, known, line) for line in lines.reshape(-1, n)]
        expected = np.moveaxis(np.reshape(interpolated, (*lines.shape[:-1], new)), -1, axis)

    np.testing.assert_allclose(to_network_grid(array[np.newaxis], grid)[0].numpy(), expected, atol=1e-5)


def test_simpleitk_resamples_alike(config: Callable[..., ServiceConfig]) -> None:
    """SimpleITK's linear interpolator gives the same intensities for the same voxel size."""
    array = np.random.default_rng(4).normal(size=(6, 5, 4)).astype(np.float32)
    grid = Grid.of(volume_of(array, np.diag([1.7, 0.8, 3.0, 1])), config())
    image = SimpleITK.GetImageFromArray(array.T)
    image.SetSpacing((1.7, 0.8, 3.0))
    resampled = SimpleITK.Resample(
        image, grid.network_shape, SimpleITK.Transform(), SimpleITK.sitkLinear, (0, 0, 0), (1, 1, 1)
    )

    expected = SimpleITK.GetArrayFromImage(resampled).T
    inside = (slice(0, -1),) * 3  # the last plane may lie beyond the last voxel: SimpleITK has 0 there
    np.testing.assert_allclose(to_network_grid(array[np.newaxis], grid)[0].numpy()[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize(("order", "signs"), AXES[::5], ids=str)
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR"])
def test_monai_resamples_alike(
    order: tuple[int, ...], signs: tuple[int, ...], axcodes: str, config: Callable[..., ServiceConfig]
) -> None:
    """MONAI's Orientation and Spacing give the same grid and the same intensities in float64."""
    from monai.data import MetaTensor

    array = np.random.default_rng(5).normal(size=(9, 8, 7))
    affine, target = affine_of(order, signs, (0.8, 1.7, 2.5)), (1.5, 1.1, 2.0)
    grid = Grid.of(volume_of(array, affine), config(orientation=axcodes, spacing_mm=target))
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    image = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))

    expected = Spacing(target, mode="bilinear")(Orientation(axcodes=axcodes, labels=labels)(image))

    actual = to_network_grid(array[np.newaxis], grid, np.float64)
    np.testing.assert_allclose(actual.numpy(), np.asarray(expected), atol=1e-5)


def test_a_spacing_that_moves_no_voxel_resamples_nothing(config: Callable[..., ServiceConfig]) -> None:
    """With 0.99999994 mm from a float32 header no intensity changes."""
    array = phantom(40, 30, 20)

    grid = Grid.of(volume_of(array, np.diag([0.99999994, 1.00001, 1, 1])), config())

    assert list(grid.step) == [1, 1, 1]
    assert np.array_equal(to_network_grid(array[np.newaxis], grid)[0].numpy(), array)


@given(
    shape=st.tuples(*[st.integers(2, 6)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 4)] * 3),
    axes=st.sampled_from(AXES),
)
def test_a_linear_field_survives_the_journey(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], axes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """Linear intensities are unchanged after conversion and back, up to the network's last but one plane."""
    config = _isotropic()
    affine = affine_of(*axes, spacing)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    array = (places @ [1.0, -2.0, 0.5]).astype(np.float32)
    grid = Grid.of(volume_of(array, affine), config)

    back = to_scan_grid(to_network_grid(array[np.newaxis], grid), grid)

    inside = np.ones(grid.oriented_shape, bool)
    for axis, (n, step) in enumerate(zip(grid.network_shape, grid.step, strict=True)):
        inside[(slice(None),) * axis + (slice(math.floor((n - 2) * step) + 1 if step != 1 else n, None),)] = False
    inside = to_scan_axes(inside, grid)
    np.testing.assert_allclose(back[0][inside], array[inside], atol=1e-3)
    assert back[0].shape == shape


def _isotropic() -> ServiceConfig:
    from service.bundle.registry import SHIPPED

    return ServiceConfig.model_validate_json((SHIPPED / "hippocampus-mr" / "service.json").read_bytes())


def test_labels_take_the_nearest_voxel(config: Callable[..., ServiceConfig]) -> None:
    """From 3 mm to 1 mm, 0, 2, 1 becomes 0, 0, 2, 2, 2, 1, 1, without labels in between."""
    labels = np.broadcast_to(np.array([0, 2, 1], np.uint8)[:, None, None], (3, 2, 2))
    grid = Grid.of(volume_of(labels, np.diag([3.0, 1, 1, 1])), config())

    actual = labels_to_network_grid(labels, grid)

    assert actual.dtype == torch.uint8
    assert actual[0, :, 0, 0].tolist() == [0, 0, 2, 2, 2, 1, 1]


@pytest.mark.parametrize(("order", "signs"), AXES[::7], ids=str)
def test_labels_travel_with_their_scan(
    order: tuple[int, ...], signs: tuple[int, ...], config: Callable[..., ServiceConfig]
) -> None:
    """On the network's grid a label covers the same voxels as in the file."""
    array = np.zeros((4, 5, 6), np.uint8)
    array[1, 2:4, 3:] = 1
    grid = Grid.of(volume_of(array, affine_of(order, signs)), config())

    image, labels = to_network_grid(array[np.newaxis].astype(np.float32), grid), labels_to_network_grid(array, grid)

    assert torch.equal(image, labels.float())


def test_the_z_score_is_that_of_float64(config: Callable[..., ServiceConfig]) -> None:
    """Around a mean of 10^7 float32 sums would shift the z-score by 0.2 to 1.2; here it is exact."""
    array = (10_000_000 + np.random.default_rng(5).integers(0, 8, (40, 40, 40))).astype(np.float32)

    image, _ = preprocess(volume_of(array), config(intensity=[ZScore()]))

    exact = array.astype(np.float64)
    np.testing.assert_allclose(image[0].numpy(), (exact - exact.mean()) / exact.std(), atol=1e-5)
    assert image.dtype == torch.float32


def test_the_z_score_is_taken_over_all_voxels_or_over_those_that_are_not_0(
    config: Callable[..., ServiceConfig],
) -> None:
    """For 0, 0, 1, 3 repeated, with nonzero the mean is 2, the deviation 1, and zeros stay 0."""
    array = np.array([0, 0, 1, 3] * 2, np.float32).reshape(2, 2, 2)

    image, _ = preprocess(volume_of(array), config(intensity=[ZScore(nonzero=True)]))
    assert image.flatten().tolist() == [0, 0, -1, 1] * 2

    image, _ = preprocess(volume_of(array), config(intensity=[ZScore()]))
    assert image.flatten().tolist() == pytest.approx([-0.8164966, -0.8164966, 0, 1.6329932] * 2)


@pytest.mark.parametrize("nonzero", [False, True])
def test_monai_normalises_alike(nonzero: bool, config: Callable[..., ServiceConfig]) -> None:  # noqa: FBT001 - a parameter
    """MONAI's NormalizeIntensity gives the same numbers."""
    array = np.random.default_rng(6).normal(300, 40, (6, 5, 4)).astype(np.float32)
    array[0] = 0

    image, _ = preprocess(volume_of(array), config(intensity=[ZScore(nonzero=nonzero)]))

    expected = NormalizeIntensity(nonzero=nonzero)(torch.from_numpy(array)[None])
    np.testing.assert_allclose(image.numpy(), np.asarray(expected), atol=1e-5)


def test_a_window_maps_its_ends_to_0_and_1(config: Callable[..., ServiceConfig]) -> None:
    """For -100 to 300 HU, -500 and -100 become 0, 100 becomes 0.5, 300 and 2000 become 1; MONAI agrees."""
    array = np.array([-500, -100, 100, 300, 2000, 0, 200, 250], np.int16).reshape(2, 2, 2)

    image, _ = preprocess(volume_of(array), config(intensity=[Window(low=-100, high=300)]))

    assert image.flatten().tolist() == [0, 0, 0.5, 1, 1, 0.25, 0.75, 0.875]
    expected = ScaleIntensityRange(-100, 300, 0, 1, clip=True)(torch.from_numpy(array)[None].float())
    np.testing.assert_allclose(image.numpy(), np.asarray(expected), atol=1e-6)


def test_steps_follow_one_another(config: Callable[..., ServiceConfig]) -> None:
    """After a window, the z-score turns equal parts of 0 and 1 into -1 and 1."""
    array = np.array([-900, 900] * 4, np.int16).reshape(2, 2, 2)

    image, _ = preprocess(volume_of(array), config(intensity=[Window(low=0, high=1), ZScore()]))

    assert image.flatten().tolist() == [-1, 1] * 4


def test_a_constant_scan_has_nothing_to_segment(config: Callable[..., ServiceConfig]) -> None:
    """A scan of a single intensity is refused for every intensity step."""
    for step in (ZScore(), ZScore(nonzero=True), Window(low=0, high=1)):
        with pytest.raises(ConstantVolume):
            preprocess(volume_of(np.full((2, 2, 2), 7, np.int16)), config(intensity=[step]))


def test_a_binary_scan_is_normalised(config: Callable[..., ServiceConfig]) -> None:
    """If all nonzero voxels are equal they become 0, not NaN."""
    array = np.array([0, 5] * 4, np.uint8).reshape(2, 2, 2)

    image, _ = preprocess(volume_of(array), config(intensity=[ZScore(nonzero=True)]))

    assert image.flatten().tolist() == [0] * 8


def test_another_number_of_channels_is_refused(config: Callable[..., ServiceConfig]) -> None:
    """A model of two channels refuses a scan of one."""
    with pytest.raises(InvalidRequest, match=r"^The scan has 1 channels; the model takes 2\.$"):
        preprocess(volume_of(phantom(2, 2, 2)), config(channels=["T1", "T2"]))


def test_a_scan_that_would_fill_the_memory_is_refused(config: Callable[..., ServiceConfig]) -> None:
    """8 voxels of 10 m are valid NIfTI but would be 10^21 voxels of 1 mm, so the scan is refused."""
    with pytest.raises(ScanError):
        preprocess(volume_of(phantom(2, 2, 2), np.diag([1e7, 1e7, 1e7, 1])), config())


@pytest.mark.parametrize("axes", ["RAS", "PSR", "LIA"])
def test_real_scans_in_other_axes_give_the_same_input(
    axes: str, hippocampus: Path, tmp_path: Path, config: Callable[..., ServiceConfig]
) -> None:
    """A scan stored in other axis codes gives the network the same input."""
    path = min((hippocampus / "imagesTr").glob("hippocampus_*.nii.gz"))
    image: Any = nib.load(path)
    orientation = nib.orientations.ornt_transform(
        nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(tuple(axes))
    )
    nib.save(image.as_reoriented(orientation), tmp_path / "reoriented.nii.gz")

    expected, _ = preprocess(decode_scan(path), config())
    actual, _ = preprocess(decode_scan(tmp_path / "reoriented.nii.gz"), config())

    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("values", [1, 150, 400, 1 << 20])
def test_the_way_back_does_not_depend_on_the_slabs(values: int) -> None:
    """Slabs of one, several or all planes give the same bits, on a grid that is finer or coarser along each axis."""
    grid = Grid((13, 9, 8), np.array([[0, 1], [1, 1], [2, 1]], float), (13, 9, 8), (6, 17, 8), (2.4, 0.5, 1.0))
    array = torch.randn(2, 6, 17, 8, generator=torch.Generator().manual_seed(0)).half()

    whole = to_scan_grid(array, grid)
    slabs = torch.cat([slab for _, slab in to_scan_slabs(array, grid, values)], dim=1)

    assert np.array_equal(slabs.numpy(), whole)


def test_all_planes_at_once_are_those_one_by_one() -> None:
    """A GPU interpolates within all planes of a slab at once: the values are those of the CPU."""
    array = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.linspace(0, 5, 9, dtype=torch.float64), torch.linspace(0, 4, 7, dtype=torch.float64)
    y, x = 2 * rows / 5 - 1, 2 * columns / 4 - 1
    coordinates = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].float()

    actual = in_all_planes(array, coordinates)

    torch.testing.assert_close(actual, preprocess_module._in_plane(array, rows, columns), rtol=0, atol=1e-6)


def test_a_slab_on_a_gpu_is_as_large_as_its_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 bytes per value of the memory that the driver or torch holds free, from a CPU's slab to 1 GiB of float32."""
    device, held = torch.device("cuda:0"), {"reserved": 3 << 30, "allocated": 1 << 30}
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: held["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: held["allocated"])

    def values(free: int) -> int:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 80 << 30))
        return preprocess_module._slab_values(device)

    assert values(4 << 30) == (6 << 30) // 48
    assert values(70 << 30) == 1 << 28
    held["allocated"] = held["reserved"]
    assert values(0) == SLAB_VALUES
    assert preprocess_module._slab_values(torch.device("cpu")) == SLAB_VALUES


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_order_in_memory_does_not_matter(order: str, config: Callable[..., ServiceConfig]) -> None:
    """Scans in Fortran order, as in NIfTI, and in C order are resampled alike."""
    array = np.random.default_rng(5).normal(size=(7, 6, 5)).astype(np.float32)
    grid = Grid.of(volume_of(array, affine_of((2, 0, 1), (1, -1, 1), (0.7, 1.9, 3))), config())

    actual = to_network_grid(np.array(array, order=order)[np.newaxis], grid)  # type: ignore[call-overload]

    torch.testing.assert_close(actual, to_network_grid(array[np.newaxis], grid), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [ZScore(), ZScore(nonzero=True), Window(low=-1, high=1)], ids=str)
def test_the_scan_itself_is_left_as_it_was(step: ZScore | Window, config: Callable[..., ServiceConfig]) -> None:
    """Normalisation in place does not touch the scan's own array."""
    array = np.random.default_rng(6).normal(size=(3, 4, 5)).astype(np.float32)
    before = array.copy()

    preprocess(volume_of(array), config(intensity=[step]))

    assert np.array_equal(array, before)


def test_many_pieces_have_the_mean_of_the_whole(
    config: Callable[..., ServiceConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan that is normalised in pieces of seven voxels has a mean of 0 and a deviation of 1."""
    monkeypatch.setattr("service.pipeline.preprocess._PIECE", 7)
    array = np.random.default_rng(7).normal(1000, 3, size=(6, 5, 4)).astype(np.float32)

    actual, _ = preprocess(volume_of(array), config())

    expected = (array.astype(np.float64) - array.mean(dtype=np.float64)) / array.std(dtype=np.float64)
    np.testing.assert_allclose(actual[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("fill", [-32768.0, 0.0, 4095.0])
@pytest.mark.parametrize(
    "step", [ZScore(), ZScore(nonzero=True), RobustZScore(), Window(low=900, high=1100)], ids=lambda s: str(s.step)
)
def test_declared_padding_is_in_no_statistic(
    step: ZScore | RobustZScore | Window, fill: float, config: Callable[..., ServiceConfig]
) -> None:
    """Tissue gets the values that it has in the scan without its padding; padding becomes 0."""
    array = np.random.default_rng(8).normal(1000, 50, (9, 8, 7)).astype(np.float32)
    nothing = np.zeros((9, 8, 13), bool)
    nothing[..., :2], nothing[..., 9:] = True, True
    padded = np.full(nothing.shape, fill, np.float32)
    padded[..., 2:9] = array
    padding = Volume(padded[np.newaxis], np.eye(4), b"", padding=nothing)

    actual, _ = preprocess(padding, config(intensity=[step]))

    expected, _ = preprocess(volume_of(array), config(intensity=[step]))
    torch.testing.assert_close(actual[0, ..., 2:9], expected[0], rtol=0, atol=1e-5)
    assert not actual[0, ..., :2].any()
    assert not actual[0, ..., 9:].any()


def test_a_scan_of_declared_padding_alone_is_refused(config: Callable[..., ServiceConfig]) -> None:
    """There is nothing to segment, whatever its intensities."""
    array = phantom(4, 5, 6)
    volume = Volume(array[np.newaxis], np.eye(4), b"", padding=np.ones(array.shape, bool))

    for step in (ZScore(), RobustZScore()):
        with pytest.raises(ConstantVolume):
            preprocess(volume, config(intensity=[step]))


def test_f1_a_few_voxels_do_not_become_many(config: Callable[..., ServiceConfig]) -> None:
    """2 x 2 x 2 voxels of 300 mm would be 27 million at the model's 1 mm: refused before one of them is made."""
    scan = volume_of(phantom(2, 2, 2), np.diag([300.0, 300, 300, 1]))

    with pytest.raises(VolumeTooLarge, match=f"more than {FEW_VOXELS} voxels"):
        preprocess(scan, config(spacing_mm=(1, 1, 1)))
