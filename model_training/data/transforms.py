"""Random augmentation of a training image, one function for each kind of data.

Each function returns the transform of ``{"image": (C, D, H, W), "label": (1, D, H, W)}``, with normalised intensities, to
one augmented patch of the bundle's size, or to a list of several. The patch is cut first and augmented afterwards, which
costs a tenth of augmenting the whole scan; the paper's code partly does it in the other order.
"""

from typing import Final

from monai.transforms import (
    Compose,
    MapTransform,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandSpatialCropd,
    RandZoomd,
    SpatialPadd,
)

from model_training.data.artefacts import RandArtefactsd, RandCutPlanesd
from service.bundle.schema import ServiceConfig

_BOTH: Final = ("image", "label")
_MODES: Final = ("bilinear", "nearest")


def one_model_for_both_sides(config: ServiceConfig) -> Compose:
    """Flip left and right, so that one model serves both sides; translate, rotate, scale; blur, noise, contrast."""
    return Compose(
        [
            *_any_patch(config),
            *_flipped_and_moved(config),
            RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.3, 0.9), sigma_y=(0.3, 0.9), sigma_z=(0.3, 0.9)),
            RandGaussianNoised("image", prob=0.3, std=0.15),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            RandScaleIntensityd("image", prob=0.3, factors=0.15),
        ]
    )


def both_sides_with_artefacts(config: ServiceConfig) -> Compose:
    """Flip and deform as `one_model_for_both_sides`; then spoil the image as scans are, and cut planes off.

    The patch is cut tightly around a crop, which is smaller: planes are cut of the crop before it is padded.
    """
    return Compose(
        [
            RandCutPlanesd(_BOTH, probability=0.05, most=6),
            *_any_patch(config),
            *_flipped_and_moved(config),
            RandArtefactsd("image"),
            RandScaleIntensityd("image", prob=0.3, factors=0.15),
        ]
    )


def turned_in_plane(config: ServiceConfig) -> Compose:
    """Rotate about the third axis by any angle, translate, scale: for stacks of thick slices, whose planes never tilt.

    Every second patch is centred on a foreground voxel: in some fields of view the heart is small.
    """
    return Compose(
        [
            SpatialPadd(_BOTH, config.patch_size),
            _about_foreground(config, patches=1),
            RandAffined(
                _BOTH,
                prob=0.8,
                rotate_range=(0, 0, 3.1416),
                translate_range=(10, 10, 0),
                scale_range=(0.2, 0.2, 0),
                mode=_MODES,
                padding_mode="zeros",
            ),
            RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.3, 0.9), sigma_y=(0.3, 0.9), sigma_z=(0.0, 0.0)),
            RandGaussianNoised("image", prob=0.3, std=0.1),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            RandScaleIntensityd("image", prob=0.3, factors=0.15),
        ]
    )


def small_affine(config: ServiceConfig) -> Compose:
    """Rotate, shear and scale every second patch by a tenth: as the paper trains on ACDC (arXiv 2506.03942)."""
    return Compose([*_any_patch(config), _affine()])


def small_affine_about_foreground(config: ServiceConfig) -> Compose:
    """As `small_affine`, on four patches of an image, every second centred on foreground: the paper's AMOS and KiTS."""
    return Compose([SpatialPadd(_BOTH, config.patch_size), _about_foreground(config, patches=4), _affine()])


def zoom_turn_blur(config: ServiceConfig) -> Compose:
    """Zoom, rotate, noise, blur, gamma and left-right flips: as the paper trains on BraTS (arXiv 2506.03942)."""
    turn = 0.2618  # 15 degrees
    blur = (0.5, 1.15)
    return Compose(
        [
            *_any_patch(config),
            RandZoomd(_BOTH, prob=0.3, min_zoom=0.7, max_zoom=1.5, mode=("trilinear", "nearest")),
            RandRotated(_BOTH, range_x=turn, range_y=turn, range_z=turn, prob=0.3, mode=_MODES, padding_mode="border"),
            RandGaussianNoised("image", prob=0.2, std=0.1),
            RandGaussianSmoothd("image", prob=0.2, sigma_x=blur, sigma_y=blur, sigma_z=blur),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            RandFlipd(_BOTH, prob=0.5, spatial_axis=_left_right(config)),
        ]
    )


def _flipped_and_moved(config: ServiceConfig) -> list[MapTransform]:
    """Return a flip of left and right, then translation, rotation and scaling."""
    return [
        RandFlipd(_BOTH, prob=0.5, spatial_axis=_left_right(config)),
        RandAffined(
            _BOTH,
            prob=0.8,
            rotate_range=(0.26, 0.26, 0.26),
            translate_range=(5, 5, 5),
            scale_range=(0.15, 0.15, 0.15),
            mode=_MODES,
            padding_mode="zeros",
        ),
    ]


def _any_patch(config: ServiceConfig) -> list[MapTransform]:
    return [SpatialPadd(_BOTH, config.patch_size), RandSpatialCropd(_BOTH, config.patch_size, random_size=False)]


def _about_foreground(config: ServiceConfig, *, patches: int) -> RandCropByPosNegLabeld:
    return RandCropByPosNegLabeld(_BOTH, "label", config.patch_size, pos=1, neg=1, num_samples=patches)


def _affine() -> RandAffined:
    tenth = (0.1, 0.1, 0.1)
    return RandAffined(
        _BOTH, prob=0.5, rotate_range=tenth, shear_range=tenth, scale_range=tenth, mode=_MODES, padding_mode="border"
    )


def _left_right(config: ServiceConfig) -> int:
    return config.orientation.index("R" if "R" in config.orientation else "L")
