"""Building blocks of the recipes: folds, networks, schedules, the population of a card and the text of a licence file.

A recipe of the paper is Barfoot et al.'s (arXiv 2506.03942), for a GPU of 24 GB. Each has a small variant for a CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from model_training.config import Augmentation, Recipe, Schedule
from model_training.data.case import Case
from service.bundle.acceptance import Words
from service.bundle.card import Population
from service.bundle.schema import Code, Network

TRAIN_FOLDS: Final = ("fold1", "fold2", "fold3", "fold4")
"""Splits that the shipped models are trained on."""

CARD_FOLD: Final = "fold5"
"""Split that the cards are measured on."""

RIGHT: Final = Code(value="24028007", meaning="Right")
LEFT: Final = Code(value="7771000", meaning="Left")

_CHANGES = "Changes: a neural network was trained on the images and labels; neither is contained in this bundle."
_CODE = "The code of Calibrant is licensed separately (Apache-2.0). No warranty; for research use only, not a medical device."


NO_ORIGINAL: Final = Words(
    name="ImageType",
    refused=("LOCALIZER", "*PROJECTION*", "*MIP*", "*MAP", "ADC", "FA", "P", "PHASE*", "SUBTRACTION", "*PERFUSION*"),
)
"""Refuses what was computed from images (PS3.3 C.8.3.1.1.1), or only shows where they lie."""

UNSAID: Final = ("UNKNOWN", "OTHER", "NONE", "UNSPECIFIED", "N/A", "NA", "NO")
"""Values by which scanners say nothing."""


def licence_notice(terms: str, origin: str, *further: str) -> str:
    """Return the text of the LICENSE file of the weights.

    Args:
        terms: paragraph on the licence of the weights.
        origin: sentence on what they were trained on; the changes are named after it.
        further: paragraphs on other weights of the bundle.
    """
    return "\n\n".join([terms, f"{origin}\n{_CHANGES}", *further, _CODE]) + "\n"


def held_out(
    *, dataset: str, citation: str, licence: str, modality: str, anatomy: str
) -> Callable[[list[Case]], Population]:
    """Return the function from the cases of fold 5 to the population that their card speaks about."""

    def population(cases: list[Case]) -> Population:
        return Population(
            dataset=dataset,
            citation=citation,
            licence=licence,
            modality=modality,
            anatomy=anatomy,
            protocol="held-out",
            split="development fold 5 of 5 (trained on folds 1 to 4)",
            n_persons=len({case.person for case in cases}),
            n_cases=len(cases),
        )

    return population


def segresnet_ds(*, in_channels: int, out_channels: int) -> Network:
    """Return the paper's network, a SegResNet with deep supervision at four scales.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
    """
    return Network(
        name="SegResNetDS",
        arguments={
            "spatial_dims": 3,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "init_filters": 32,
            "blocks_down": [1, 2, 2, 4, 4],
            "norm": "instance",
            "dsdepth": 4,
        },
    )


def unet(
    *,
    in_channels: int,
    out_channels: int,
    channels: Sequence[int] = (16, 32, 64, 128),
    strides: Sequence[int | Sequence[int]] = (2, 2, 2),
    kernel_size: Sequence[int] | None = None,
) -> Network:
    """Return a small U-Net with two residual units a level.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        channels: features of each level.
        strides: between the levels, one for all axes or one each.
        kernel_size: of the convolutions; MONAI's default, 3, without it.
    """
    kernel = {} if kernel_size is None else {"kernel_size": list(kernel_size)}
    return Network(
        name="UNet",
        arguments={
            "spatial_dims": 3,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": list(channels),
            "strides": list(strides),
            **kernel,
            "num_res_units": 2,
            "norm": "instance",
        },
    )


def paper_schedule(*, steps: int, warmup_steps: int, learning_rate: float, validate_every: int) -> Schedule:
    """Return a schedule of the paper: batches of two images, a warm-up from half the peak, weight decay 1e-5."""
    return Schedule(
        steps=steps,
        warmup_steps=warmup_steps,
        warmup_from=0.5,
        batch_size=2,
        learning_rate=learning_rate,
        weight_decay=1e-5,
        validate_every=validate_every,
    )


def cpu_schedule(*, steps: int, batch_size: int, validate_every: int) -> Schedule:
    """Return a schedule of some hours on a CPU."""
    return Schedule(
        steps=steps,
        warmup_steps=100,
        batch_size=batch_size,
        learning_rate=2e-3,
        weight_decay=1e-4,
        validate_every=validate_every,
    )


def small(
    recipe: Recipe,
    schedule: Schedule,
    *,
    augmentation: Augmentation | None = None,
    network: Network | None = None,
    **service: object,
) -> Recipe:
    """Return the variant of a recipe for a CPU: a small U-Net, larger voxels, windows that overlap by half.

    Args:
        recipe: the paper's; the variant's name ends with ``-small``.
        schedule: of the variant.
        augmentation: the recipe's own without it.
        network: a U-Net with strides of 2 without it.
        service: further fields of the `ServiceConfig` that differ, e.g. ``spacing_mm`` and ``patch_size``.
    """
    config = recipe.service
    changes: dict[str, object] = {
        "name": f"{config.name}-small",
        "network": network or unet(in_channels=len(config.channels), out_channels=len(config.labels)),
        "overlap": 0.5,
        **service,
    }
    return replace(
        recipe,
        service=config.model_copy(update=changes),
        augmentation=augmentation or recipe.augmentation,
        schedule=schedule,
    )
