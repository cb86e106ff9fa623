"""The recipe of a locator: everything that does not follow from the label maps."""

from dataclasses import dataclass

from model_training.config import Schedule
from model_training.locator.frame import reference, shift_mm
from model_training.locator.heads import Head
from service.bundle.schema import Locator, Network, Part


@dataclass(frozen=True, slots=True)
class LocatorRecipe:
    """What a locator needs besides label maps of heads.

    Args:
        anatomy: name of the anatomy, as the refusal gives it.
        extent_mm: a scan that is no longer than this R-L, A-P and I-S is segmented without locating.
        network: has one output channel for the background and one for each landmark.
        spacing_mm: spacing of the coarse grid.
        least_landmarks: with fewer landmarks there is no head.
        residual_mm: largest accepted root mean square distance of the landmarks from their usual positions.
        scale: smallest and largest accepted size of a head, relative to the reference frame.
        parts: what is segmented, and about which landmark; where the box lies follows from the heads.
        held_out: number of heads, the last by name, that are never trained on.
        schedule: of the training.
    """

    anatomy: str
    extent_mm: tuple[float, float, float]
    network: Network
    spacing_mm: float
    least_landmarks: int
    residual_mm: float
    scale: tuple[float, float]
    parts: tuple[Part, ...]
    held_out: int
    schedule: Schedule

    def split(self, heads: list[Head]) -> tuple[list[Head], list[Head]]:
        """Return the training heads and the held-out ones."""
        return heads[: -self.held_out], heads[-self.held_out :]

    def declaration(self, heads: list[Head]) -> Locator:
        """Return the locator as a bundle declares it, with the landmarks of these heads."""
        return Locator(
            anatomy=self.anatomy,
            extent_mm=self.extent_mm,
            network=self.network,
            spacing_mm=self.spacing_mm,
            landmarks=reference(heads),
            least_landmarks=self.least_landmarks,
            residual_mm=self.residual_mm,
            scale=self.scale,
            parts=[part.model_copy(update={"shift_mm": shift_mm(heads, part.landmark)}) for part in self.parts],
        )
