"""The two files that let MONAI's own tools read a bundle; the service uses neither.

`metadata.json` follows MONAI's metadata schema of 2024-07-25; `inference.json` runs with
``python -m monai.bundle run --bundle_root BUNDLE --config_file BUNDLE/configs/inference.json --scan SCAN``.
"""

from importlib.metadata import version
from typing import Any

from service.bundle.card import CalibrationCard
from service.bundle.schema import IntensityStep, ServiceConfig, Window, ZScore

_SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"


def metadata(config: ServiceConfig, card: CalibrationCard) -> dict[str, Any]:
    """Return the content of `configs/metadata.json`."""
    shape = list(config.patch_size)
    image = {
        "type": "image",
        "format": "hounsfield" if config.modality == "CT" else "magnitude",
        "modality": config.modality,
        "num_channels": len(config.channels),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": dict(enumerate(config.channels)),
    }
    labels = {index: label.name for index, label in enumerate(config.labels)}
    pred = image | {"format": "segmentation", "num_channels": len(config.labels), "channel_def": labels}
    return {
        "schema": _SCHEMA,
        "version": config.version,
        "changelog": {config.version: "First release."},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "safetensors")},
        "name": config.name,
        "task": config.description,
        "description": f"{config.description} The calibration card is in calibration.json.",
        "authors": "Calibrant",
        "copyright": "Calibrant; weights under the terms of the file LICENSE.",
        "data_source": card.population.dataset,
        "data_type": "nibabel",
        "intended_use": "Research only; not a medical device.",
        "references": [card.population.citation, "Barfoot et al., arXiv:2506.03942"],
        "eval_metrics": {name: score.value for name, score in card.measurements[0].scores.items()},
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}},
    }


def inference_config(config: ServiceConfig) -> dict[str, Any]:
    """Return the content of `configs/inference.json`: one scan in, its mask out."""
    return {
        "imports": ["$import torch", "$from safetensors.torch import load_file"],
        "bundle_root": ".",
        "scan": "scan.nii.gz",
        "output_dir": "$@bundle_root + '/eval'",
        "network_def": {"_target_": config.network.name, **config.network.arguments},
        "weights": "$load_file(@bundle_root + '/models/model.safetensors')",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "Orientationd", "keys": "image", "axcodes": config.orientation, "labels": None},
                {"_target_": "Spacingd", "keys": "image", "pixdim": list(config.spacing_mm)},
                *(transform for step in config.intensity for transform in _intensity(step)),
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(config.patch_size),
            "overlap": config.overlap,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"},
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "uint8"},
            ],
        },
        "case": "$@preprocessing({'image': @scan})",
        "pred": "$@inferer(@case['image'][None], @network_def.eval())[0]",
        "run": [
            "$@network_def.load_state_dict(@weights)",
            "$torch.set_grad_enabled(False)",
            "$@postprocessing({**@case, 'pred': @pred})",
        ],
    }


def _intensity(step: IntensityStep) -> list[dict[str, Any]]:
    """Return MONAI's transforms for a step; they know no padding, of which `robust_zscore` takes no notice."""
    if isinstance(step, Window):
        scale = {"a_min": step.low, "a_max": step.high, "b_min": 0, "b_max": 1, "clip": True}
        return [{"_target_": "ScaleIntensityRanged", "keys": "image", **scale}]
    normalise = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": False, "channel_wise": True}
    if isinstance(step, ZScore):
        return [normalise | {"nonzero": step.nonzero}]
    clip = {"lower": step.low_percentile, "upper": step.high_percentile, "channel_wise": True}
    return [{"_target_": "ClipIntensityPercentilesd", "keys": "image", **clip}, normalise]
