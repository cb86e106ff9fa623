"""Random changes of a training image: what the model must not depend on."""

from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)

from service.bundle.schema import ServiceConfig


def augmentation(config: ServiceConfig) -> Compose:
    """Return the transform of ``{"image": (C, D, H, W), "label": (1, D, H, W)}`` to one augmented patch of the bundle's size.

    Left and right are flipped (first axis, when the orientation's first letter is R or L): one model serves both
    sides. Intensities are changed after z-scoring.
    """
    both = ("image", "label")
    size = config.patch_size
    return Compose(
        [
            SpatialPadd(both, size),
            RandSpatialCropd(both, size, random_size=False),
            RandFlipd(both, prob=0.5, spatial_axis=config.orientation.index("R" if "R" in config.orientation else "L")),
            RandAffined(
                both,
                prob=0.8,
                rotate_range=(0.26, 0.26, 0.26),
                translate_range=(5, 5, 5),
                scale_range=(0.15, 0.15, 0.15),
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandGaussianSmoothd("image", prob=0.15, sigma_x=(0.3, 0.9), sigma_y=(0.3, 0.9), sigma_z=(0.3, 0.9)),
            RandGaussianNoised("image", prob=0.3, std=0.15),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5)),
            RandScaleIntensityd("image", prob=0.3, factors=0.15),
        ]
    )
