"""Kidneys, tumours and cysts in contrast-enhanced CT: KiTS 2023."""

from typing import Final

from model_training.config import Recipe
from model_training.data.layouts.kits import read_kits
from model_training.data.transforms import small_affine_about_foreground
from model_training.recipes.blocks import (
    CARD_FOLD,
    TRAIN_FOLDS,
    cpu_schedule,
    held_out,
    licence_notice,
    paper_schedule,
    segresnet_ds,
    small,
)
from service.bundle.schema import Code, Label, Region, ServiceConfig, Window

_CITATION = "KiTS 2023; Heller et al., The KiTS21 Challenge, arXiv:2307.01984"

_LICENCE = licence_notice(
    """\
The weights in this bundle are licensed under the Creative Commons Attribution-NonCommercial-ShareAlike licence, as the
data set is (version 4.0), https://creativecommons.org/licenses/by-nc-sa/4.0/. SPDX-License-Identifier: CC-BY-NC-SA-4.0""",
    f"They were trained on: {_CITATION}.",
)


def _labels() -> list[Label]:
    return [
        Label(value=0, name="background", color=(0, 0, 0)),
        Label(value=1, name="kidney", color=(86, 180, 233), code=Code(value="64033007", meaning="Kidney")),
        Label(value=2, name="tumour", color=(213, 94, 0), code=Code(value="108369006", meaning="Neoplasm")),
        Label(value=3, name="cyst", color=(240, 228, 66), code=Code(value="367643001", meaning="Cyst")),
    ]


KITS23: Final = Recipe(
    service=ServiceConfig(
        name="kits23",
        version="0.1.0",
        description="Kidneys with their tumours and cysts in contrast-enhanced CT.",
        modality="CT",
        anatomy="both kidneys",
        channels=["CT"],
        network=segresnet_ds(in_channels=1, out_channels=4),
        orientation="RAS",
        spacing_mm=(1.0, 1.0, 1.0),
        intensity=[Window(low=-54, high=242)],
        patch_size=(128, 128, 128),
        overlap=0.25,
        labels=_labels(),
        regions=[
            Region(name="kidney and masses", labels=[1, 2, 3]),
            Region(name="masses", labels=[2, 3]),
            Region(name="tumour", labels=[2]),
        ],
        temperature=[1.0] * 4,
    ),
    cases=read_kits,
    augmentation=small_affine_about_foreground,
    train_splits=TRAIN_FOLDS,
    validation_split=CARD_FOLD,
    population=held_out(
        dataset="KiTS 2023",
        citation=_CITATION,
        licence="CC BY-NC-SA 4.0",
        modality="CT",
        anatomy="abdomen, contrast-enhanced, before surgery of a kidney tumour or cyst",
    ),
    limits="patients who underwent nephrectomy for a suspected kidney tumour or cyst; contrast-enhanced CT only",
    nsd_tolerance_mm=1.0,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=1.0,
    ace_after=0,
    # 1,250 epochs of 352 scans (nine tenths of four fifths of 489) in batches of 2: 1,250 x 176 steps, 2 x 176 of them
    # warm-up.
    schedule=paper_schedule(steps=220_000, warmup_steps=352, learning_rate=1e-4, validate_every=1760),
)
"""As Barfoot et al. train it (arXiv 2506.03942): SegResNetDS at 1 x 1 x 1 mm, for a GPU of 24 GB."""


KITS23_SMALL: Final = small(
    KITS23,
    cpu_schedule(steps=2000, batch_size=1, validate_every=400),
    spacing_mm=(3.0, 3.0, 3.0),
    patch_size=(64, 64, 64),
)
"""For a CPU: a small U-Net on voxels of 3 x 3 x 3 mm, four patches of one scan a step."""
