"""The state of an unfinished run in one file, written whole or not at all; safetensors, no pickle.

What a step draws at random follows from the seed and the step alone (`model_training.training.train`), so that weights, the
optimiser's moments and the number of the step are all that a run needs to go on as if nothing had happened.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from model_training.data.case import DataError

NAME: Final = "checkpoint.safetensors"
"""File of the checkpoint in the run's folder."""


@dataclass(slots=True)
class TrainingPosition:
    """How far a run has come."""

    step: int = 0
    """Steps that are done."""
    seconds: float = 0.0
    """Time that they took."""
    history: list[dict[str, float]] = field(default_factory=list)
    """What validation showed."""


def save_checkpoint(
    run: Path, network: nn.Module, optimiser: torch.optim.Optimizer, position: TrainingPosition, identity: str
) -> None:
    """Replace the checkpoint in the run's folder.

    Args:
        run: folder of the run.
        network: its weights.
        optimiser: its moments.
        position: how far the run has come.
        identity: what the run was started as; only the same may go on.
    """
    tensors = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
    for index, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": tensor.contiguous() for name, tensor in moments.items()}
    facts = {"identity": identity, "step": str(position.step), "seconds": str(position.seconds)}
    save_file(tensors, run / f"{NAME}.part", metadata=facts | {"history": json.dumps(position.history)})
    (run / f"{NAME}.part").replace(run / NAME)


def load_checkpoint(
    run: Path, network: nn.Module, optimiser: torch.optim.Optimizer, identity: Callable[[int], str]
) -> TrainingPosition:
    """Bring network and optimiser to where the run's checkpoint stands and return its position; 0 without one.

    Args:
        run: folder of the run.
        network: receives the weights.
        optimiser: receives the moments.
        identity: step -> what the checkpoint of this run says there.

    Raises:
        DataError: the checkpoint is damaged, or belongs to another recipe, seed or data set.
    """
    if not (run / NAME).is_file():
        return TrainingPosition()
    try:
        with safe_open(run / NAME, framework="pt") as file:
            facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        msg = f"{run / NAME} cannot be read ({error}). Remove it to train from the first step."
        raise DataError(msg) from error
    if facts["identity"] != identity(int(facts["step"])):
        msg = (
            f"{run} holds the checkpoint of another recipe, seed or data set. Choose another folder, or remove {NAME}."
        )
        raise DataError(msg)
    network.load_state_dict(_part(tensors, "network."))
    state = optimiser.state_dict()
    state["state"] = _moments(_part(tensors, "optimiser."))
    optimiser.load_state_dict(state)
    return TrainingPosition(int(facts["step"]), float(facts["seconds"]), json.loads(facts["history"]))


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _moments(tensors: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, moment = name.partition(".")
        moments.setdefault(int(index), {})[moment] = tensor
    return moments
