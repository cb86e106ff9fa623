"""Parts of a glioma in four MR contrasts: BraTS 2021."""

from typing import Final

from model_training.config import Recipe
from model_training.data.layouts.brats import read_brats
from model_training.data.transforms import zoom_turn_blur
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
from service.bundle.schema import Code, Label, Region, ServiceConfig, ZScore

_CITATION = (
    "BraTS 2021; Baid et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv:2107.02314; "
    "Menze et al., IEEE TMI 34(10):1993-2024 (2015); Bakas et al., Sci Data 4:170117 (2017)"
)

_LICENCE = licence_notice(
    """\
The terms of the data set apply to the weights in this bundle: those that you accepted on Synapse when you asked for it,
to the best of our knowledge for non-commercial research only.""",
    f"They were trained on: {_CITATION}.",
)


def _labels() -> list[Label]:
    return [
        Label(value=0, name="background", color=(0, 0, 0)),
        Label(value=1, name="necrotic tumour core", color=(213, 94, 0), code=Code(value="6574001", meaning="Necrosis")),
        Label(value=2, name="oedema", color=(0, 158, 115), code=Code(value="79654002", meaning="Edema")),
        # We know no certain code for "the part that takes up contrast agent".
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
        network=segresnet_ds(in_channels=4, out_channels=4),
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
    train_splits=TRAIN_FOLDS,
    validation_split=CARD_FOLD,
    population=held_out(
        dataset="BraTS 2021, training release",
        citation=_CITATION,
        licence="the terms of the data set apply (Synapse; non-commercial research)",
        modality="MR",
        anatomy="brain with a glioma, before surgery, skull-stripped, 1 x 1 x 1 mm",
    ),
    limits="glioma before surgery only; images already skull-stripped and registered to 1 mm",
    nsd_tolerance_mm=1.0,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=1.0,
    ace_after=0,
    # 1,250 epochs of 998 cases (19 of 20 parts of 1,051) in batches of 2: 1,250 x 499 steps, 2 x 499 of them warm-up.
    schedule=paper_schedule(steps=623_750, warmup_steps=998, learning_rate=1e-4, validate_every=4990),
)
"""As Barfoot et al. train it (arXiv 2506.03942): SegResNetDS at 1 x 1 x 1 mm, for a GPU of 24 GB."""


BRATS21_SMALL: Final = small(
    BRATS21,
    cpu_schedule(steps=2000, batch_size=2, validate_every=400),
    spacing_mm=(2.0, 2.0, 2.0),
    patch_size=(80, 80, 64),
)
"""For a CPU: a small U-Net on voxels of 2 x 2 x 2 mm."""
