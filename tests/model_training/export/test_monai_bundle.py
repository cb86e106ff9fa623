import datetime as dt
from pathlib import Path

import pytest
import torch

from model_training.export.monai_bundle import inference_config, metadata
from service.bundle.description import describe_bundle
from service.bundle.schema import ServiceConfig, Window

REQUIRED = {
    "schema": str,
    "version": str,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "network_data_format": dict,
}
"""What MONAI's metadata schema of 2024-07-25 requires, with its types."""

REQUIRED_OF_A_TENSOR = {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range"}


def test_metadata_holds_what_monais_schema_requires(tiny_bundle: Path) -> None:
    """Every field that MONAI's schema requires is present with its type, also for the tensors."""
    description = describe_bundle(tiny_bundle)
    document = metadata(description.config, description.card)
    assert {name: type(document[name]) for name in REQUIRED} == REQUIRED
    tensors = document["network_data_format"]
    assert tensors["inputs"]["image"].keys() >= REQUIRED_OF_A_TENSOR
    assert tensors["outputs"]["pred"].keys() >= REQUIRED_OF_A_TENSOR
    assert tensors["outputs"]["pred"]["channel_def"] == {0: "background", 1: "front", 2: "back"}


def test_metadata_names_versions_without_build_tags(tiny_bundle: Path) -> None:
    """`2.13.0+cpu` is a build of version 2.13.0."""
    description = describe_bundle(tiny_bundle)
    assert metadata(description.config, description.card)["pytorch_version"] == torch.__version__.partition("+")[0]
    assert description.card.date <= dt.datetime.now(dt.UTC).date()


@pytest.mark.parametrize(
    ("step", "target"),
    [
        ({"step": "zscore", "nonzero": True}, "NormalizeIntensityd"),
        ({"step": "window", "low": -100, "high": 200}, "ScaleIntensityRanged"),
    ],
)
def test_intensity_steps_have_their_monai_transform(
    tiny_config: ServiceConfig, step: dict[str, object], target: str
) -> None:
    """Each declared intensity step becomes the equivalent MONAI transform, after orientation and spacing."""
    config = ServiceConfig.model_validate(tiny_config.model_dump() | {"intensity": [step]})
    transforms = inference_config(config)["preprocessing"]["transforms"]
    assert [t["_target_"] for t in transforms] == ["LoadImaged", "Orientationd", "Spacingd", target]
    assert isinstance(config.intensity[0], Window) == ("low" in step)
