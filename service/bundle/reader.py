"""Open a bundle: verify every hash, validate its declarations, load the weights. No pickle, no code from the bundle."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from service.bundle.description import WEIGHTS, BundleDescription, describe_bundle
from service.bundle.network import build_network
from service.errors import BundleInvalid


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBundle:
    """A bundle whose network is in memory, in evaluation mode, on `device`."""

    description: BundleDescription
    network: nn.Module
    device: torch.device


def load_bundle(root: Path, device: torch.device) -> LoadedBundle:
    """Return the bundle at `root` ready to serve.

    Raises:
        BundleIntegrity: a file differs from the manifest.
        BundleInvalid: a description breaks its schema, or the weights do not fit the network.
        BundleUnsupported: a network or feature that this version does not have.
    """
    description = describe_bundle(root)
    network = build_network(description.config.network)
    try:
        network.load_state_dict(load_file(root / WEIGHTS), strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        msg = "models/model.safetensors does not fit the network of service.json. Export the bundle again."
        raise BundleInvalid(msg) from error
    return LoadedBundle(description, network.to(device).eval(), device)
