"""Open a bundle: verify every hash, validate its declarations, load the weights. No pickle, no code from the bundle."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from service.bundle.card import Measurement
from service.bundle.description import LOCATOR, WEIGHTS, BundleDescription, describe_bundle
from service.bundle.engine_kind import REFERENCE, EngineKind
from service.bundle.network import build_network
from service.bundle.schema import Network
from service.errors import BundleIntegrity, BundleInvalid


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBundle:
    """A bundle with its networks in memory, in evaluation mode, on `device`.

    Args:
        description: of the bundle.
        network: maps windows to logits, run by the engine of `engine_kind`.
        device: that computes.
        locator: run by torch in float32; None if the bundle has none.
        engine_kind: engine and precision of the network.
        measurement: of `engine_kind` on this kind of device, if made on this machine; None if the card's applies.
    """

    description: BundleDescription
    network: nn.Module
    device: torch.device
    locator: nn.Module | None = None
    engine_kind: EngineKind = REFERENCE
    measurement: Measurement | None = None

    def on_cpu(self) -> "LoadedBundle":
        """Return the same bundle on the CPU, run by torch in float32, for a case that a GPU's memory does not hold.

        It is read again, so that nothing of this one moves.

        Raises:
            BundleError: as `load_bundle`; or the disk holds another version by now.
        """
        bundle = load_bundle(self.description.root, torch.device("cpu"))
        if bundle.description.identity != self.description.identity:
            msg = "The disk holds another version of the model than the one in service. An administrator can load it."
            raise BundleIntegrity(msg)
        return bundle


def load_bundle(root: Path, device: torch.device) -> LoadedBundle:
    """Load the bundle at `root` with its networks in torch, float32.

    Raises:
        BundleIntegrity: a file differs from the manifest.
        BundleInvalid: a description breaks its schema, or the weights do not fit the network.
        BundleUnsupported: a network that this version does not support.
    """
    description = describe_bundle(root)
    locator = description.config.locator
    return LoadedBundle(
        description,
        _loaded(description.config.network, root / WEIGHTS).to(device),
        device,
        None if locator is None else _channels_last(_loaded(locator.network, root / LOCATOR)).to(device),
    )


def _loaded(declaration: Network, weights: Path) -> nn.Module:
    _reject_other_shapes(declaration, weights)
    network = build_network(declaration)
    try:
        network.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        msg = f"models/{weights.name} does not fit the network of service.json. Export the bundle again."
        raise BundleInvalid(msg) from error
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        msg = f"models/{weights.name} holds weights that are NaN or infinite. Export the bundle again."
        raise BundleInvalid(msg)
    return network.eval()


def _reject_other_shapes(declaration: Network, weights: Path) -> None:
    """Refuse weights of other names or shapes than the network's, before either is in memory.

    A declaration of a few bytes can ask for a network of any size; that of a network without memory costs nothing.

    Raises:
        BundleInvalid: they differ, or the file is not of safetensors.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_network(declaration).state_dict().items()}
    try:
        with safe_open(weights, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        msg = f"models/{weights.name} is no file of safetensors, or is damaged. Export the bundle again."
        raise BundleInvalid(msg) from error
    if found != expected:
        differ = sum(found.get(name) != expected.get(name) for name in {*found, *expected})
        msg = f"models/{weights.name} does not fit the network of service.json: {differ} of {len(expected)} tensors differ. Export the bundle again."
        raise BundleInvalid(msg)


def _channels_last(network: nn.Module) -> nn.Module:
    """Return the network with channels-last weights, which reduces the time of its convolutions by a third."""
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's types lack it
    return network
