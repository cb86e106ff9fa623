"""What a locator is trained for: what does not follow from the label maps."""

from dataclasses import dataclass

from model_training.config import Schedule
from model_training.locator.frame import reference, shift_mm
from model_training.locator.heads import Head
from service.bundle.schema import Locator, Network, Part


@dataclass(frozen=True, slots=True)
class LocatorRecipe:
    """All that a locator needs besides label maps of heads.

    Args:
        anatomy: what is looked for, as the refusal names it.
        extent_mm: a scan that is no longer R-L, A-P and I-S is segmented as it comes.
        network: one output channel for the background and for each landmark.
        spacing_mm: of the coarse grid.
        least_landmarks: fewer are no head.
        residual_mm: largest root mean square distance of the landmarks from their places.
        scale: least and largest size of a head.
        parts: what is segmented, about which landmark; the heads say where its box lies.
        held_out: so many heads, the last by name, never train.
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
        """Return the heads that train and those that are held out."""
        return heads[: -self.held_out], heads[-self.held_out :]

    def declaration(self, heads: list[Head]) -> Locator:
        """Return the locator as a bundle declares it, its landmarks those of these heads."""
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
