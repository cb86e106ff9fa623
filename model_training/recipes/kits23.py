"""Kidneys, tumours and cysts in contrast-enhanced CT: KiTS 2023."""

from dataclasses import replace
from typing import Final

from model_training.config import Recipe, Schedule
from model_training.data.case import Case
from model_training.data.layouts.kits import read_kits
from model_training.data.transforms import small_affine_about_foreground
from service.bundle.card import Population
from service.bundle.schema import Code, Label, Network, Region, ServiceConfig, Window

_CITATION = "KiTS 2023; Heller et al., The KiTS21 Challenge, arXiv:2307.01984"

_LICENCE = f"""\
The weights in this bundle are licensed under the Creative Commons Attribution-NonCommercial-ShareAlike licence, as the
data set is (version 4.0), https://creativecommons.org/licenses/by-nc-sa/4.0/. SPDX-License-Identifier: CC-BY-NC-SA-4.0

They were trained on: {_CITATION}.
Changes: a neural network was trained on the images and labels; neither is contained in this bundle.

The code of Calibrant is licensed separately (Apache-2.0). No warranty; for research use only, not a medical device.
"""


def _population(cases: list[Case]) -> Population:
    return Population(
        dataset="KiTS 2023",
        citation=_CITATION,
        licence="CC BY-NC-SA 4.0",
        modality="CT",
        anatomy="abdomen, contrast-enhanced, before surgery of a kidney tumour or cyst",
        protocol="held-out",
        split="development fold 5 of 5 (trained on folds 1 to 4)",
        n_persons=len({case.person for case in cases}),
        n_cases=len(cases),
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
        network=Network(
            name="SegResNetDS",
            arguments={
                "spatial_dims": 3,
                "in_channels": 1,
                "out_channels": 4,
                "init_filters": 32,
                "blocks_down": [1, 2, 2, 4, 4],
                "norm": "instance",
                "dsdepth": 4,
            },
        ),
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
    train_splits=("fold1", "fold2", "fold3", "fold4"),
    validation_split="fold5",
    population=_population,
    limits="patients who underwent nephrectomy for a suspected kidney tumour or cyst; contrast-enhanced CT only",
    nsd_tolerance_mm=1.0,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=1.0,
    ace_after=0,
    # 1,250 epochs of 352 scans (nine tenths of four fifths of 489) in batches of 2: 1,250 x 176 steps, 2 x 176 of them
    # warm-up.
    schedule=Schedule(
        steps=220_000,
        warmup_steps=352,
        warmup_from=0.5,
        batch_size=2,
        learning_rate=1e-4,
        weight_decay=1e-5,
        validate_every=1760,
    ),
)
"""As Barfoot et al. train it (arXiv 2506.03942): SegResNetDS at 1 x 1 x 1 mm, for a GPU of 24 GB."""


KITS23_SMALL: Final = replace(
    KITS23,
    service=KITS23.service.model_copy(
        update={
            "name": "kits23-small",
            "network": Network(
                name="UNet",
                arguments={
                    "spatial_dims": 3,
                    "in_channels": 1,
                    "out_channels": 4,
                    "channels": [16, 32, 64, 128],
                    "strides": [2, 2, 2],
                    "num_res_units": 2,
                    "norm": "instance",
                },
            ),
            "spacing_mm": (3.0, 3.0, 3.0),
            "patch_size": (64, 64, 64),
            "overlap": 0.5,
        }
    ),
    schedule=Schedule(
        steps=2000, warmup_steps=100, batch_size=1, learning_rate=2e-3, weight_decay=1e-4, validate_every=400
    ),
)
"""For a CPU: a small U-Net on voxels of 3 x 3 x 3 mm, four patches of one scan a step."""
