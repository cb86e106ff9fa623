"""The checkpoint of an unfinished run: one safetensors file, written atomically.

Random draws of a step follow from seed and step alone (`model_training.training.train`). So weights, the optimiser's moments
and the step are all that a run needs to continue as if it had never stopped.
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
    """Progress of a run."""

    step: int = 0
    """Number of completed steps."""
    seconds: float = 0.0
    """Time they took."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Scores and losses at each validation."""

    def advance(self, step: int, seconds: float, scores: Mapping[str, float], losses: Mapping[str, float]) -> None:
        """Move to a step at which the network was validated.

        Args:
            step: number of the step.
            seconds: since the start of the run, earlier processes included.
            scores: of the validation cases.
            losses: terms of the step's loss.
        """
        validated = {f"validation_{name}": score for name, score in scores.items()}
        self.history.append({"step": step, **validated, **losses})
        self.step, self.seconds = step, seconds


def save_checkpoint(
    run: Path, network: nn.Module, optimiser: torch.optim.Optimizer, position: TrainingPosition, identity: str
) -> None:
    """Replace the checkpoint in the run's folder.

    Args:
        run: folder of the run.
        network: its weights are saved.
        optimiser: its moments are saved.
        position: progress of the run.
        identity: identity of the run; only a run with the same identity may continue from the checkpoint.
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
    """Load the run's checkpoint into network and optimiser and return its position; step 0 without a checkpoint.

    Args:
        run: folder of the run.
        network: receives the weights.
        optimiser: receives the moments.
        identity: step -> identity that a checkpoint of this run has at that step.

    Raises:
        DataError: the checkpoint is damaged, or belongs to another recipe, seed or data set.
    """
    if not (run / NAME).is_file():
        return TrainingPosition()
    try:
        with safe_open(run / NAME, framework="pt") as file:
            facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
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
