from dataclasses import replace

import numpy as np
import pytest
import torch

from service.bundle.card import ComparedFeature, ObservedAnswer, ShiftTestRecord
from service.bundle.description import BundleDescription, describe_bundle
from service.bundle.registry import DEFAULT_MODEL, SHIPPED
from service.calibration.shift import LEAST_PERSONS
from service.errors import BundleInvalid
from service.pipeline.compare import compare
from service.pipeline.features import describe, features_of
from service.pipeline.tissue import tissue_of
from service.volume import Volume

SHAPE = (24, 28, 20)


@pytest.fixture
def shipped() -> BundleDescription:
    """Return the shipped bundle with answers about 20 drawn persons in its card."""
    bundle = describe_bundle(SHIPPED / DEFAULT_MODEL)
    features = [ComparedFeature(name=n, unit=f.unit, log=f.log) for n, f in features_of(bundle.config).items()]
    answers = [
        ObservedAnswer(
            case=str(k),
            person=str(k),
            fold=f"fold{k % 2}",
            artefacts="",
            dsc=0.9,
            values=list(describe(*answer(k), bundle.config).values()),
        )
        for k in range(LEAST_PERSONS + 1)
    ]
    record = ShiftTestRecord(features=features, answers=answers)
    return replace(bundle, card=bundle.card.model_copy(update={"shift_tests": (record,)}))


def answer(seed: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image and logits with a ball of each class whose radius varies."""
    generator = np.random.default_rng(seed)
    at = np.indices(SHAPE)
    logits = np.zeros((3, *SHAPE), np.float32)
    for k, centre in ((1, (12, 8, 10)), (2, (12, 19, 9))):
        distance = np.linalg.norm(at - np.array(centre).reshape(3, 1, 1, 1), axis=0)
        logits[k] = 3 * (4 + generator.normal(0, 0.3) - distance)
    image = generator.standard_normal((1, *SHAPE)) + logits[1:].max(axis=0) / 4 + offset
    return torch.from_numpy(image.astype(np.float32)), torch.from_numpy(logits)


def test_an_answer_like_the_others_is_not_shifted(shipped: BundleDescription) -> None:
    """A new person of the same kind, and the number of persons."""
    image, logits = answer(100)

    verdict = compare(shipped, [image], logits[None], located=False)

    assert verdict is not None
    assert not verdict.shifted
    assert verdict.n_persons == LEAST_PERSONS + 1


def test_what_lies_around_a_located_part_does_not_count(shipped: BundleDescription) -> None:
    """An image with other surroundings is unlike the whole scans of the card; as a located part it is not."""
    image, logits = answer(100)
    far = logits[1:].amax(dim=0) < -9  # beyond the rim: a voxel further away is 3 less
    image[0][far] = torch.where(torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) < 0.5, 8.0, -8.0)[far]

    whole = compare(shipped, [image], logits[None], located=False)
    part = compare(shipped, [image], logits[None], located=True)

    assert whole is not None
    assert part is not None
    assert whole.shifted
    assert not part.shifted
    assert all("percentile of intensity" not in feature.feature for feature in part.off)


def test_the_most_unlike_part_decides(shipped: BundleDescription) -> None:
    """Of two parts one is far off: its p-value counts, twice, and its features are named."""
    good, logits = answer(100)
    bad, _ = answer(101, offset=50)

    alone = compare(shipped, [bad], logits[None], located=True)
    both = compare(shipped, [good, bad], torch.stack([logits, logits]), located=True)

    assert alone is not None
    assert both is not None
    assert both.p == pytest.approx(2 * alone.p)
    assert both.off == alone.off
    assert any("intensity" in deviation.feature for deviation in both.off)


def test_a_card_without_observed_answers_compares_nothing(shipped: BundleDescription) -> None:
    """As every card from before the shift test."""
    image, logits = answer(1)
    old = replace(shipped, card=shipped.card.model_copy(update={"shift_tests": ()}))

    assert compare(old, [image], logits[None], located=False) is None


def test_a_card_of_other_features_is_refused(shipped: BundleDescription) -> None:
    """The error names the bundle, instead of a feature that is missing."""
    image, logits = answer(1)
    (record,) = shipped.card.shift_tests
    other = record.model_copy(update={"features": record.features[::-1]})
    changed = replace(shipped, card=shipped.card.model_copy(update={"shift_tests": (other,)}))

    with pytest.raises(BundleInvalid, match="compares other features"):
        compare(changed, [image], logits[None], located=False)


@pytest.mark.parametrize("widths", [((0, 0),) * 3, ((2, 0), (0, 3), (1, 1))])
def test_the_box_of_the_tissue_leaves_padding_out(widths: tuple[tuple[int, int], ...]) -> None:
    """The field of view that is compared is that of what the scan shows."""
    shown = np.random.default_rng(0).normal(500, 80, SHAPE).astype(np.float32)
    volume = Volume(np.pad(shown, widths)[np.newaxis], np.eye(4), b"")

    box = tissue_of(volume).box(volume.shape)

    assert box == tuple(slice(a, a + n) for (a, _), n in zip(widths, SHAPE, strict=True))
