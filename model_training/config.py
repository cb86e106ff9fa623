"""What a recipe decides: data, network, loss, schedule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from monai.transforms import Compose

from model_training.data.case import Case
from service.bundle.card import Population
from service.bundle.schema import ServiceConfig

CaseLister = Callable[[Path], dict[str, list[Case]]]
Augmentation = Callable[[ServiceConfig], Compose]


@dataclass(kw_only=True, slots=True, frozen=True)
class Schedule:
    """How long and how fast to train."""

    steps: int
    """Optimiser steps."""
    warmup_steps: int
    """Steps over which the learning rate rises linearly; a half cosine to 0 follows."""
    batch_size: int
    """Images per step."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    weight_decay: float
    """Of AdamW."""
    validate_every: int
    """Steps between two looks at the validation cases, each with a checkpoint."""
    warmup_from: float = 0.0
    """Fraction of the peak at which the warm-up begins."""

    def __post_init__(self) -> None:
        """Refuse a schedule that cannot run."""
        if not 0 <= self.warmup_steps < self.steps:
            msg = f"warmup_steps is {self.warmup_steps}; expected 0 to {self.steps - 1}, less than steps."
            raise ValueError(msg)
        if min(self.batch_size, self.validate_every) < 1 or self.learning_rate <= 0:
            msg = "batch_size, validate_every and learning_rate must be positive."
            raise ValueError(msg)


@dataclass(kw_only=True, slots=True, frozen=True)
class Recipe:
    """One data set's way from raw files to a bundle."""

    service: ServiceConfig
    """How the bundle will be served; training preprocesses by the same declaration."""
    cases: CaseLister
    """Data folder -> cases per split name."""
    augmentation: Augmentation
    """Random changes of a training image, and the patch that is cut from it."""
    train_splits: tuple[str, ...]
    """Splits that the shipped model is trained on."""
    validation_split: str
    """Split that the card is measured on; never trained on, never used to choose."""
    population: Callable[[list[Case]], Population]
    """Whom a card over these cases speaks about."""
    limits: str
    """What the model card says about the limits of the data, half a sentence each."""
    nsd_tolerance_mm: float | None
    """Distance within which two surfaces agree; None where the files do not tell the true voxel size, so that no
    distance can be given in mm."""
    licence_notice: str
    """Text of the LICENSE file of the weights."""
    binning: Literal["hard", "soft"]
    """Which mL1-ACE."""
    ace_weight: float
    """Its weight beside Dice and cross-entropy."""
    ace_after: int
    """Steps of Dice and cross-entropy alone before it joins: first the segmentation, then its calibration."""
    schedule: Schedule
    """How long and how fast."""

    def without(self, fold: str, splits: Iterable[str]) -> Self:
        """Return the recipe trained on all folds but one and looked at on that one.

        Args:
            fold: that is held out.
            splits: names of all splits; the test set never takes part.
        """
        others = tuple(split for split in splits if split not in (fold, "test"))
        return replace(self, train_splits=others, validation_split=fold)

    def with_temperature(self, temperature: list[float]) -> Self:
        """Return the recipe whose bundle divides the logits of each class by these."""
        service = self.service.model_copy(update={"temperature": temperature})
        return replace(self, service=ServiceConfig.model_validate(service.model_dump()))

    def with_loss(self, binning: Literal["hard", "soft"], ace_weight: float, *, after: int = 0) -> Self:
        """Return the recipe with another mL1-ACE term and everything else equal."""
        return replace(self, binning=binning, ace_weight=ace_weight, ace_after=after)
