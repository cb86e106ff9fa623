"""Right ventricle, myocardium and left ventricle in cardiac cine MR: ACDC 2017."""

from typing import Final

from model_training.config import Recipe
from model_training.data.layouts.acdc import read_acdc
from model_training.data.transforms import small_affine, turned_in_plane
from model_training.recipes.blocks import (
    CARD_FOLD,
    LEFT,
    NO_ORIGINAL,
    RIGHT,
    TRAIN_FOLDS,
    UNSAID,
    cpu_schedule,
    held_out,
    licence_notice,
    paper_schedule,
    segresnet_ds,
    small,
    unet,
)
from service.bundle.acceptance import Acceptance, Limit, Words
from service.bundle.schema import Code, Label, ServiceConfig, ZScore

_CITATION = "ACDC 2017; Bernard et al., IEEE TMI 37(11):2514-2525 (2018)"

_LICENCE = licence_notice(
    """\
The weights in this bundle are licensed under the Creative Commons Attribution-NonCommercial-ShareAlike 4.0
International licence (CC BY-NC-SA 4.0), https://creativecommons.org/licenses/by-nc-sa/4.0/.
SPDX-License-Identifier: CC-BY-NC-SA-4.0""",
    f"They were trained on, and are adapted from: {_CITATION}, whose terms are the same: non-commercial research only.",
)

_CINE: Final = Acceptance(
    words=(
        Words(name="Modality", accepted=("MR",)),
        Words(
            name="BodyPartExamined",
            accepted=("*HEART*", "*CARDI*", "*CHEST*", "*THORAX*", "*MYOCARD*", "*HERZ*", "*COEUR*"),
            unsaid=UNSAID,
        ),
        NO_ORIGINAL,
        Words(
            name="SeriesDescription",
            refused=("*LGE*", "*DELAYED*", "*PSIR*", "*T1*", "*T2*", "*STIR*", "*PERF*", "*SCOUT*", "*LOCALI*"),
        ),
        Words(name="suffix", refused=("PET", "CT", "BOLD", "DWI", "T1W", "T2W", "FLAIR")),
    ),
    limits=(
        Limit(name="SliceThickness", unit="mm", low=4, high=12),
        Limit(name="InversionTime", unit="ms", low=0, high=0, otherwise="refused"),
    ),
)
"""Cine after bright blood; late enhancement and maps have an inversion pulse."""

_VENTRICLE = Code(value="21814001", meaning="Cardiac ventricle")


def _labels() -> list[Label]:
    return [
        Label(value=0, name="background", color=(0, 0, 0)),
        Label(value=1, name="right ventricle", color=(86, 180, 233), code=_VENTRICLE, modifiers=[RIGHT]),
        Label(
            value=2, name="myocardium", color=(230, 159, 0), code=Code(value="74281007", meaning="Myocardium structure")
        ),
        Label(value=3, name="left ventricle", color=(213, 94, 0), code=_VENTRICLE, modifiers=[LEFT]),
    ]


ACDC17: Final = Recipe(
    service=ServiceConfig(
        name="acdc17",
        version="0.1.0",
        description="Both ventricles and the myocardium in short-axis cardiac cine MR.",
        modality="MR",
        anatomy="the heart in short-axis slices",
        channels=["cine"],
        network=segresnet_ds(in_channels=1, out_channels=4),
        orientation="RAS",
        spacing_mm=(1.0, 1.0, 5.0),
        intensity=[ZScore(nonzero=True)],
        patch_size=(256, 256, 16),
        overlap=0.25,
        labels=_labels(),
        temperature=[1.0] * 4,
    ),
    cases=read_acdc,
    augmentation=small_affine,
    train_splits=TRAIN_FOLDS,
    validation_split=CARD_FOLD,
    population=held_out(
        dataset="ACDC 2017",
        citation=_CITATION,
        licence="CC BY-NC-SA 4.0",
        modality="MR",
        anatomy="short-axis cine of the heart, end diastole and end systole",
    ),
    acceptance=_CINE,
    limits="one site, two scanners; short-axis slices 5 to 10 mm thick; five diagnostic groups in equal parts, unlike any clinic",
    nsd_tolerance_mm=None,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=1.0,
    ace_after=0,
    # 600 epochs of 180 frames in batches of 2, two of them warm-up: the paper's schedule.
    schedule=paper_schedule(steps=54_000, warmup_steps=180, learning_rate=2e-4, validate_every=900),
)
"""As Barfoot et al. train it (arXiv 2506.03942): SegResNetDS at 1 x 1 x 5 mm, for a GPU of 24 GB."""


ACDC17_SMALL: Final = small(
    ACDC17,
    cpu_schedule(steps=2100, batch_size=4, validate_every=300),
    augmentation=turned_in_plane,
    network=unet(in_channels=1, out_channels=4, strides=[[2, 2, 1], [2, 2, 1], [2, 2, 2]], kernel_size=[3, 3, 3]),
    spacing_mm=(1.5, 1.5, 10.0),
    intensity=[ZScore()],
    patch_size=(128, 128, 8),
)
"""For a CPU: a small U-Net at the voxel size that the files declare."""

COMPARISON: Final = {
    "dice-ce": ACDC17_SMALL.with_loss("soft", 0.0),
    "hard-1": ACDC17_SMALL.with_loss("hard", 1.0),
    "soft-0.3": ACDC17_SMALL.with_loss("soft", 0.3),
    "dice-ce-then-soft-0.3": ACDC17_SMALL.with_loss("soft", 0.3, after=1500),
}
"""The compared configurations (docs/decisions/0008); the last one won on the hippocampus."""
