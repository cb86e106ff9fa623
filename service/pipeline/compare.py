"""Compares an answer with the answers about the card's persons."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch

from service.bundle.description import BundleDescription
from service.calibration.shift import ShiftTest, ShiftVerdict
from service.errors import BundleInvalid
from service.pipeline.features import answer_features, describe, features_of


def compare(
    bundle: BundleDescription, images: Sequence[torch.Tensor], logits: torch.Tensor, *, located: bool
) -> ShiftVerdict | None:
    """Return what the shift test says about an answer; None for a card without one.

    Located parts are compared with located answers if the card has any, otherwise with those about whole scans, by the
    features of the answer alone: what else lies in a box follows from how it was placed, which those never show. The
    verdict on several parts is that on the most unlike one, whose p-value is multiplied by their number (Bonferroni); so it
    takes 39 persons to withdraw one of two parts.

    Args:
        bundle: holds the card.
        images: the network's inputs, (C, D, H, W), of the scan or of each part.
        logits: (images, K, D, H, W) the network's outputs.
        located: whether the images are parts that were located in a larger scan.

    Raises:
        BundleInvalid: the card's features are not those of the bundle's labels.
    """
    test = _test_of(bundle, located=located)
    if test is None:
        return None
    verdicts = [
        test.verdict(describe(image, of_image, bundle.config)) for image, of_image in zip(images, logits, strict=True)
    ]
    worst = min(verdicts, key=lambda verdict: verdict.p)
    return replace(worst, p=min(1.0, len(verdicts) * worst.p))


@lru_cache(maxsize=16)
def _test_of(bundle: BundleDescription, *, located: bool) -> ShiftTest | None:
    """Return the fitted test of a bundle, which takes some milliseconds to fit."""
    card = bundle.card
    own, whole = card.shift_test("located") if located else None, card.shift_test("whole")
    record = own or whole
    if record is None:
        return None
    names = [feature.name for feature in record.features]
    if names != list(features_of(bundle.config)):
        msg = f"The card of {bundle.config.name} compares other features than this version describes. Export the bundle again."
        raise BundleInvalid(msg)
    return (record if own or not located else record.only(answer_features(bundle.config))).test()
