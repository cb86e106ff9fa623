"""Fifteen organs in abdominal CT: AMOS 2022."""

from typing import Final

from model_training.config import Recipe
from model_training.data.layouts.amos import read_amos
from model_training.data.transforms import small_affine_about_foreground
from model_training.recipes.blocks import (
    CARD_FOLD,
    LEFT,
    RIGHT,
    TRAIN_FOLDS,
    cpu_schedule,
    held_out,
    licence_notice,
    paper_schedule,
    segresnet_ds,
    small,
)
from service.bundle.schema import Code, Label, ServiceConfig, Window

_CITATION = (
    "AMOS 2022; Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image Segmentation, "
    "NeurIPS 2022 Datasets and Benchmarks, arXiv:2206.08023"
)

_LICENCE = licence_notice(
    """\
The terms of the data set apply to the weights in this bundle. Its sources name different Creative Commons licences (CC BY 4.0;
CC BY-NC-SA, for research only): read those that came with your copy, and take the stricter one in doubt.""",
    f"They were trained on: {_CITATION}.",
)


def _labels() -> list[Label]:
    kidney, adrenal = Code(value="64033007", meaning="Kidney"), Code(value="23451007", meaning="Adrenal gland")
    return [
        Label(value=0, name="background", color=(0, 0, 0)),
        Label(value=1, name="spleen", color=(230, 25, 75), code=Code(value="78961009", meaning="Spleen")),
        Label(value=2, name="right kidney", color=(245, 130, 48), code=kidney, modifiers=[RIGHT]),
        Label(value=3, name="left kidney", color=(255, 225, 25), code=kidney, modifiers=[LEFT]),
        Label(value=4, name="gallbladder", color=(60, 180, 75), code=Code(value="28231008", meaning="Gallbladder")),
        Label(value=5, name="oesophagus", color=(70, 240, 240), code=Code(value="32849002", meaning="Esophagus")),
        Label(value=6, name="liver", color=(170, 110, 40), code=Code(value="10200004", meaning="Liver")),
        Label(value=7, name="stomach", color=(240, 50, 230), code=Code(value="69695003", meaning="Stomach")),
        Label(value=8, name="aorta", color=(128, 0, 0), code=Code(value="15825003", meaning="Aorta")),
        Label(
            value=9,
            name="inferior vena cava",
            color=(0, 130, 200),
            code=Code(value="64131007", meaning="Inferior vena cava"),
        ),
        Label(value=10, name="pancreas", color=(255, 250, 200), code=Code(value="15776009", meaning="Pancreas")),
        Label(value=11, name="right adrenal gland", color=(145, 30, 180), code=adrenal, modifiers=[RIGHT]),
        Label(value=12, name="left adrenal gland", color=(220, 190, 255), code=adrenal, modifiers=[LEFT]),
        Label(value=13, name="duodenum", color=(128, 128, 0), code=Code(value="38848004", meaning="Duodenum")),
        Label(value=14, name="bladder", color=(210, 245, 60), code=Code(value="89837001", meaning="Urinary bladder")),
        # Two organs share this value, and no code means "one or the other".
        Label(value=15, name="prostate or uterus", color=(250, 190, 212)),
    ]


AMOS22: Final = Recipe(
    service=ServiceConfig(
        name="amos22",
        version="0.1.0",
        description="Fifteen abdominal organs in CT.",
        modality="CT",
        anatomy="the abdomen",
        channels=["CT"],
        network=segresnet_ds(in_channels=1, out_channels=16),
        orientation="RAS",
        spacing_mm=(1.0, 1.0, 5.0),
        intensity=[Window(low=-100, high=200)],
        patch_size=(176, 176, 64),
        overlap=0.25,
        labels=_labels(),
        temperature=[1.0] * 16,
    ),
    cases=read_amos,
    augmentation=small_affine_about_foreground,
    train_splits=TRAIN_FOLDS,
    validation_split=CARD_FOLD,
    population=held_out(
        dataset="AMOS 2022, CT",
        citation=_CITATION,
        licence="the terms of the data set apply (CC BY 4.0 or CC BY-NC-SA, by source)",
        modality="CT",
        anatomy="abdomen",
    ),
    limits="two hospitals of one city; patients with abdominal tumours or abnormalities; CT only",
    nsd_tolerance_mm=1.0,
    licence_notice=_LICENCE,
    binning="soft",
    ace_weight=1.0,
    ace_after=0,
    # 600 epochs of 180 scans (nine tenths of 200) in batches of 2: 600 x 90 steps, 2 x 90 of them warm-up.
    schedule=paper_schedule(steps=54_000, warmup_steps=180, learning_rate=2e-4, validate_every=900),
)
"""As Barfoot et al. train it (arXiv 2506.03942): SegResNetDS at 1 x 1 x 5 mm, for a GPU of 24 GB."""


AMOS22_SMALL: Final = small(
    AMOS22,
    cpu_schedule(steps=2000, batch_size=1, validate_every=400),
    spacing_mm=(3.0, 3.0, 5.0),
    patch_size=(64, 64, 32),
)
"""For a CPU: a small U-Net on voxels of 3 x 3 x 5 mm, four patches of one scan a step."""
