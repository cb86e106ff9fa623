"""What a recipe holds: data, network, loss and schedule."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from monai.transforms import Compose

from model_training.data.case import Case
from service.bundle.acceptance import Acceptance
from service.bundle.card import Population
from service.bundle.schema import ServiceConfig

CaseLister = Callable[[Path], dict[str, list[Case]]]
"""Folder of a data set -> its cases by split."""

Augmentation = Callable[[ServiceConfig], Compose]
"""A bundle's configuration -> random transforms of a training image."""


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
    """Steps between two validations; each also writes a checkpoint."""
    warmup_from: float = 0.0
    """Fraction of the peak learning rate at which the warm-up starts."""

    def __post_init__(self) -> None:
        """Reject a schedule that cannot run.

        Raises:
            ValueError: a field is out of range.
        """
        if not 0 <= self.warmup_steps < self.steps:
            msg = f"warmup_steps is {self.warmup_steps}; expected 0 to {self.steps - 1}, less than steps."
            raise ValueError(msg)
        if min(self.batch_size, self.validate_every) < 1 or self.learning_rate <= 0:
            msg = "batch_size, validate_every and learning_rate must be positive."
            raise ValueError(msg)


@dataclass(kw_only=True, slots=True, frozen=True)
class Recipe:
    """Everything that one training follows from, from the raw files of a data set to a bundle."""

    service: ServiceConfig
    """How the bundle is served; training preprocesses with the same configuration."""
    cases: CaseLister
    """Lists the cases of the data set by split."""
    augmentation: Augmentation
    """Cuts a patch from a training image and augments it."""
    train_splits: tuple[str, ...]
    """Splits that the shipped model is trained on."""
    validation_split: str
    """Split that the card is measured on; never trained on, never used to choose."""
    population: Callable[[list[Case]], Population]
    """Describes the population of a card that is measured on these cases."""
    acceptance: Acceptance | None = None
    """What a scan may say about itself, for the card; by default only its modality is compared. Sizes that it does not limit
    are limited by those of the card's cases."""
    limits: str
    """Limits of the data, for the model card; clauses separated by semicolons."""
    nsd_tolerance_mm: float | None
    """Tolerance of the normalised surface Dice; None where the files do not state the true voxel size, so that no
    distance can be given in mm."""
    licence_notice: str
    """Text of the LICENSE file of the weights."""
    binning: Literal["hard", "soft"]
    """Binning of the mL1-ACE term."""
    ace_weight: float
    """Weight of the mL1-ACE term; Dice and cross-entropy have weight 1."""
    ace_after: int
    """Steps of Dice and cross-entropy alone before mL1-ACE joins: first the segmentation, then its calibration."""
    schedule: Schedule
    """How long and how fast to train."""

    def without(self, fold: str, splits: Iterable[str]) -> Self:
        """Return the recipe that trains on all folds but one and validates on that one.

        Args:
            fold: the fold to hold out.
            splits: names of all splits; the test set is never used.
        """
        others = tuple(split for split in splits if split not in (fold, "test"))
        return replace(self, train_splits=others, validation_split=fold)

    def with_temperature(self, temperature: list[float]) -> Self:
        """Return the recipe with these temperatures, one per class, by which the logits are divided."""
        service = self.service.model_copy(update={"temperature": temperature})
        return replace(self, service=ServiceConfig.model_validate(service.model_dump()))

    def with_loss(self, binning: Literal["hard", "soft"], ace_weight: float, *, after: int = 0) -> Self:
        """Return the recipe with another mL1-ACE term, everything else unchanged."""
        return replace(self, binning=binning, ace_weight=ace_weight, ace_after=after)
