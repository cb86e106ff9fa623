"""Parts of a glioma in four MR contrasts: BraTS 2021."""

from dataclasses import replace
from typing import Final

from model_training.config import Recipe, Schedule
from model_training.data.case import Case
from model_training.data.layouts.brats import read_brats
from model_training.data.transforms import zoom_turn_blur
from service.bundle.card import Population
from service.bundle.schema import Code, Label, Network, Region, ServiceConfig, ZScore

_CITATION = (
    "BraTS 2021; Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv:2107.02314; "
    "Menze et al., IEEE TMI 34(10):1993-2024 (2015); Bakas et al., Sci Data 4:170117 (2017)"
)

_LICENCE = f"""\
The terms of the data set apply to the weights in this bundle: those that you accepted on Synapse when you asked for it,
to the best of our knowledge for non-commercial research only.

They were trained on: {_CITATION}.
Changes: a neural network was trained on the images and labels; neither is contained in this bundle.

The code of Calibrant is licensed separately (Apache-2.0). No warranty; for research use only, not a medical device.
"""


def _population(cases: list[Case]) -> Population:
    return Population(
        dataset="BraTS 2021, training release",
        citation=_CITATION,
        licence="the terms of the data set apply (Synapse; non-commercial research)",
        modality="MR",
        anatomy="brain with a glioma, before surgery, skull-stripped, 1 x 1 x 1 mm",
        protocol="held-out",
        split="development fold 5 of 5 (trained on folds 1 to 4)",
        n_persons=len({case.person for case in cases}),
        n_cases=len(cases),
    )


def _labels() -> list[Label]:
    return [
        Label(value=0, name="background", color=(0, 0, 0)),
        Label(value=1, name="necrotic tumour core", color=(213, 94, 0), code=Code(value="6574001", meaning="Necrosis")),
        Label(value=2, name="oedema", color=(0, 158, 115), code=Code(value="79654002", meaning="Edema")),
        # No code that we are sure of says "the part that takes up contrast agent".
        Label(value=4, name="enhancing tumour", color=(240, 228, 66)),
    ]


BRATS21: Final = Recipe(
    service=ServiceConfig(
        name="brats21",
        version="0.1.0",
        description="Necrotic core, oedema and enhancing part of a glioma in skull-stripped MR of four contrasts.",
        modality="MR",
        anatomy="the skull-stripped brain, four contrasts on one grid",
        channels=["T1", "T1 with contrast agent", "T2", "FLAIR"],
        network=Network(
            name="SegResNetDS",
            arguments={
                "spatial_dims": 3,
                "in_channels": 4,
                "out_channels": 4,
                "init_filters": 32,
                "blocks_down": [1, 2, 2, 4, 4],
                "norm": "instance",
                "dsdepth": 4,
            },
        ),
        orientation="RAS",
        spacing_mm=(1.0, 1.0, 1.0),
        intensity=[ZScore(nonzero=True)],
        patch_size=(224, 224, 144),
        overlap=0.25,
        labels=_labels(),
        regions=[
            Region(name="whole tumour", labels=[1, 2, 4]),
            Region(name="tumour core", labels=[1, 4]),
            Region(name="enhancing tumour", labels=[4]),
        ],
        temperature=[1.0] * 4,
    ),
    cases=read_brats,
    augmentation=zoom_turn_blur,
    train_splits=("fold1", "fold2", "fold3", "fold4"),
    validation_split="fold5",
    population=_population,
    limits="glioma before surgery only; images already skull-stripped and registered to 1 mm",
    nsd_tolerance_mm=1.0,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=1.0,
    ace_after=0,
    # 1,250 epochs of 998 cases (19 of 20 parts of 1,051) in batches of 2: 1,250 x 499 steps, 2 x 499 of them warm-up.
    schedule=Schedule(
        steps=623_750,
        warmup_steps=998,
        warmup_from=0.5,
        batch_size=2,
        learning_rate=1e-4,
        weight_decay=1e-5,
        validate_every=4990,
    ),
)
"""As Barfoot et al. train it (arXiv 2506.03942): SegResNetDS at 1 x 1 x 1 mm, for a GPU of 24 GB."""


BRATS21_SMALL: Final = replace(
    BRATS21,
    service=BRATS21.service.model_copy(
        update={
            "name": "brats21-small",
            "network": Network(
                name="UNet",
                arguments={
                    "spatial_dims": 3,
                    "in_channels": 4,
                    "out_channels": 4,
                    "channels": [16, 32, 64, 128],
                    "strides": [2, 2, 2],
                    "num_res_units": 2,
                    "norm": "instance",
                },
            ),
            "spacing_mm": (2.0, 2.0, 2.0),
            "patch_size": (80, 80, 64),
            "overlap": 0.5,
        }
    ),
    schedule=Schedule(
        steps=2000, warmup_steps=100, batch_size=2, learning_rate=2e-3, weight_decay=1e-4, validate_every=400
    ),
)
"""For a CPU: a small U-Net on voxels of 2 x 2 x 2 mm."""
