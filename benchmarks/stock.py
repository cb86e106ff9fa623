"""A pipeline made of MONAI's parts as in its tutorials, with which ours is compared."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.data import decollate_batch
from monai.inferers.utils import sliding_window_inference
from monai.transforms import (
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    SaveImage,
    ScaleIntensityRanged,
    Spacingd,
)
from safetensors.torch import load_file
from torch import nn

from service.bundle.description import WEIGHTS
from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig, Window, ZScore

MASK, CONFIDENCE = "mask", "confidence"


def load_network(bundle: Path, config: ServiceConfig) -> nn.Module:
    """Return the network of a bundle in float32, without any rewriting."""
    network = build_network(config.network)
    network.load_state_dict(load_file(bundle / WEIGHTS))
    return network.eval()


def run_stock(scan: Path, network: nn.Module, config: ServiceConfig, out: Path) -> dict[str, float]:
    """Segment a scan, write mask and confidence below `out`, and return the seconds of each stage."""
    seconds: dict[str, float] = {}
    data: Any = {"image": str(scan)}
    steps = _steps(config)
    for name, transforms in steps.items():
        with _timed(seconds, name):
            data = transforms(data)
    with _timed(seconds, "infer"), torch.inference_mode():
        data["pred"] = sliding_window_inference(
            data["image"][None], config.patch_size, 1, network, overlap=config.overlap, mode="gaussian"
        )
    data["pred"] = decollate_batch(data["pred"])[0]
    with _timed(seconds, "invert"):
        before = Compose([step for steps_ in steps.values() for step in steps_.transforms])
        data = Invertd("pred", before, orig_keys="image", nearest_interp=False, to_tensor=True)(data)
    with _timed(seconds, "softmax"):
        probs = torch.softmax(data["pred"], dim=0)
    with _timed(seconds, "confidence"):
        confidence = probs.max(dim=0, keepdim=True).values
    with _timed(seconds, "argmax"):
        mask = AsDiscrete(argmax=True)(data["pred"])
    for name, image, dtype in ((MASK, mask, "uint8"), (CONFIDENCE, confidence, "float32")):
        with _timed(seconds, f"save {name}"):
            save = SaveImage(out, output_postfix=name, output_dtype=dtype, separate_folder=False, print_log=False)
            save(image)
    return seconds


def _steps(config: ServiceConfig) -> dict[str, Compose]:
    (intensity,) = config.intensity
    normalise = (
        ScaleIntensityRanged("image", intensity.low, intensity.high, 0, 1, clip=True)
        if isinstance(intensity, Window)
        else NormalizeIntensityd("image", nonzero=isinstance(intensity, ZScore) and intensity.nonzero)
    )
    labels = (("L", "R"), ("P", "A"), ("I", "S"))
    return {
        "load": Compose([LoadImaged("image", reader="NibabelReader"), EnsureChannelFirstd("image")]),
        "orient": Compose([Orientationd("image", axcodes=config.orientation, labels=labels)]),
        "spacing": Compose([Spacingd("image", pixdim=config.spacing_mm, mode="bilinear")]),
        "normalise": Compose([normalise]),
    }


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
