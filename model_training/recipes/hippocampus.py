"""Anterior and posterior hippocampus in T1-weighted MR: Medical Segmentation Decathlon, Task04."""

from dataclasses import replace
from typing import Final

from model_training.config import Recipe, Schedule
from model_training.data.layouts.msd import read_msd
from model_training.data.transforms import both_sides_with_artefacts, one_model_for_both_sides
from model_training.locator.recipe import LocatorRecipe
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
    unet,
)
from service.bundle.acceptance import Acceptance, Limit, Words
from service.bundle.schema import Code, Label, Part, RobustZScore, ServiceConfig, ZScore

_CITATION = (
    "Medical Segmentation Decathlon, Task04_Hippocampus, Vanderbilt University Medical Center; "
    "Simpson et al., arXiv:1902.09063; Antonelli et al., Nat Commun 13:4128 (2022)"
)

_T1: Final = Acceptance(
    words=(
        Words(name="Modality", accepted=("MR",)),
        Words(
            name="BodyPartExamined",
            accepted=(
                *("*HEAD*", "*BRAIN*", "*SKULL*", "*CRANI*", "*CEREBR*", "*NEURO*", "*ENCEPHAL*", "*HIPPOCAMP*"),
                *("*KOPF*", "*CABEZA*", "*TETE*", "*CRANE*"),
            ),
            unsaid=UNSAID,
        ),
        NO_ORIGINAL,
        Words(name="AcquisitionContrast", accepted=("T1",), unsaid=(*UNSAID, "MIXED")),
        Words(name="ScanningSequence", refused=("EP",)),
        Words(name="SequenceName", refused=("*FLAIR*", "*TIR2D*", "*SPCIR*", "*EP2D*", "*EPFID*", "*EP_B*", "*SWI*")),
        Words(name="PulseSequenceName", refused=("*FLAIR*", "*EPI*", "*SWI*")),
        Words(
            name="SeriesDescription",
            refused=(
                *(
                    "*FLAIR*",
                    "*T2*",
                    "*DWI*",
                    "*DTI*",
                    "*ADC*",
                    "*SWI*",
                    "*BOLD*",
                    "*FMRI*",
                    "*STIR*",
                    "*PERF*",
                    "*TOF*",
                ),
                *("*GADO*", "*POST*CONTRAST*", "*POST*GD*", "*+C*", "*_GD", "*_GD_*", "* GD", "* GD *"),
            ),
        ),
        Words(
            name="ContrastBolusAgent", refused=("*",), unsaid=(*UNSAID, "N", "NO CONTRAST", "WITHOUT", "NATIVE", "0")
        ),
        Words(name="suffix", accepted=("T1W",)),
        Words(name="ce", refused=("*",), unsaid=UNSAID),
    ),
    limits=(
        Limit(name="EchoTime", unit="ms", low=0, high=30, otherwise="refused"),
        Limit(name="InversionTime", unit="ms", low=0, high=1500, otherwise="refused"),
        Limit(name="SliceThickness", unit="mm", low=0.3, high=6),
    ),
)
"""T1-weighted without contrast agent: T2, FLAIR and proton density have longer echo or inversion times."""

_HIPPOCAMPUS = Code(value="5366008", meaning="Hippocampus")
_ANTERIOR = Code(value="255549009", meaning="Anterior")
_POSTERIOR = Code(value="255551008", meaning="Posterior")

_LICENCE = licence_notice(
    """\
The weights in this bundle are licensed under the Creative Commons Attribution-ShareAlike 4.0 International
licence (CC BY-SA 4.0), https://creativecommons.org/licenses/by-sa/4.0/. SPDX-License-Identifier: CC-BY-SA-4.0""",
    f"They were trained on, and are adapted from: {_CITATION}, licensed under CC BY-SA 4.0.",
    """\
models/locator.safetensors was trained on images drawn from sixteen of the label maps of heads that come with SynthSeg
(Billot et al., Medical Image Analysis 86:102789, 2023), licensed under Apache-2.0; no map is contained in this bundle.""",
)


def _person(case: str) -> str:
    """Return the person of a case: hippocampus_041 and _042 are the two sides of head 21, hippocampus_043 is of head 22.

    No identities are published, but the mean intensities of such pairs agree, and those of no other pairs do.
    """
    return f"head_{(int(case.removeprefix('hippocampus_')) + 1) // 2:03d}"


_COMPARED: Final = Recipe(
    service=ServiceConfig(
        name="hippocampus-mr",
        version="0.3.0",
        description="Anterior and posterior hippocampus in T1-weighted MR: both in a head, or one in a crop around it.",
        modality="MR",
        anatomy="head, or a crop of about 35 x 50 x 36 mm around one hippocampus",
        channels=["T1"],
        network=unet(in_channels=1, out_channels=3),
        orientation="RAS",
        spacing_mm=(1.0, 1.0, 1.0),
        intensity=[ZScore()],
        patch_size=(48, 64, 48),
        overlap=0.5,
        labels=[
            Label(value=0, name="background", color=(0, 0, 0)),
            Label(
                value=1,
                name="anterior hippocampus",
                color=(230, 159, 0),
                code=_HIPPOCAMPUS,
                modifiers=[_ANTERIOR],
            ),
            Label(
                value=2,
                name="posterior hippocampus",
                color=(86, 180, 233),
                code=_HIPPOCAMPUS,
                modifiers=[_POSTERIOR],
            ),
        ],
        temperature=[1.0, 1.0, 1.0],
    ),
    cases=lambda root: read_msd(root, _person),
    augmentation=one_model_for_both_sides,
    train_splits=TRAIN_FOLDS,
    validation_split=CARD_FOLD,
    population=held_out(
        dataset="Medical Segmentation Decathlon, Task04_Hippocampus",
        citation=_CITATION,
        licence="CC BY-SA 4.0",
        modality="MR",
        anatomy="one hippocampus, cropped (T1-weighted, about 35 x 50 x 36 voxels of 1 mm)",
    ),
    acceptance=_T1,
    limits="one data set and one site; persons with and without psychosis, not told apart; the two sides are not told apart in a crop",
    nsd_tolerance_mm=1.0,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=0.3,
    ace_after=1500,
    schedule=cpu_schedule(steps=2100, batch_size=4, validate_every=250),
)
"""What was compared (docs/decisions/0006); its losses are those of the winner."""

HIPPOCAMPUS: Final = replace(
    _COMPARED,
    service=_COMPARED.service.model_copy(
        update={"schema_version": "1.1", "version": "0.4.1", "intensity": [RobustZScore()]}
    ),
    augmentation=both_sides_with_artefacts,
    ace_after=2150,
    schedule=cpu_schedule(steps=3000, batch_size=4, validate_every=250),
)
"""The winner of the comparison: Dice + CE first, then soft-binned mL1-ACE (docs/results/hippocampus.md), trained on
intensities that padding and spikes leave alone, and on images with the artefacts of scans (docs/results/trust.md), longer
since those are harder."""


def _side(side: Code, first: int, colors: tuple[tuple[int, int, int], tuple[int, int, int]]) -> Part:
    """Return the part about the hippocampus of one side; its box has the edge lengths of the training crops."""
    name = side.meaning.lower()
    return Part(
        name=name,
        landmark=f"{name} hippocampus",
        search_mm=(40, 56, 44),
        size_mm=(36, 52, 40),
        labels=[
            Label(
                value=first + k,
                name=f"{name} {end.meaning.lower()} hippocampus",
                color=color,
                code=_HIPPOCAMPUS,
                modifiers=[end, side],
            )
            for k, (end, color) in enumerate(zip((_ANTERIOR, _POSTERIOR), colors, strict=True))
        ],
    )


LOCATOR: Final = LocatorRecipe(
    anatomy="hippocampus",
    extent_mm=(48, 64, 52),
    network=unet(in_channels=1, out_channels=17, channels=[16, 32, 64, 96]),
    spacing_mm=4,
    least_landmarks=10,
    residual_mm=6,
    scale=(0.75, 1.35),
    parts=(
        _side(LEFT, 11, ((230, 159, 0), (86, 180, 233))),
        _side(RIGHT, 21, ((213, 94, 0), (0, 114, 178))),
    ),
    held_out=4,
    schedule=Schedule(
        steps=3000, warmup_steps=50, batch_size=2, learning_rate=2e-3, weight_decay=1e-4, validate_every=100
    ),
)
"""Finds both hippocampi in a head; trained on scans drawn from label maps."""

COMPARISON: Final = {
    "dice-ce": _COMPARED.with_loss("soft", 0.0),
    "hard-1": _COMPARED.with_loss("hard", 1.0),
    "soft-0.3": _COMPARED.with_loss("soft", 0.3),
    "dice-ce-then-hard-1": _COMPARED.with_loss("hard", 1.0, after=1500),
    "dice-ce-then-soft-0.3": _COMPARED.with_loss("soft", 0.3, after=1500),
    "dice-ce-then-soft-1": _COMPARED.with_loss("soft", 1.0, after=1500),
}
"""The six compared configurations, fixed before the first run (docs/decisions/0006)."""
