"""The training loop, to be read from top to bottom: recipe and data in, weights out."""

import datetime as dt
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model_training.config import Recipe, Schedule
from model_training.data.case import Case, DataError, Sample
from model_training.data.samples import stored_samples
from model_training.losses.ace import ACEDiceCELoss
from model_training.training.batches import Batch, Batches
from model_training.training.checkpoint import NAME as CHECKPOINT
from model_training.training.checkpoint import TrainingPosition, load_checkpoint, save_checkpoint
from model_training.training.parallel import Group
from model_training.training.precision import trains_in_bf16
from model_training.training.progress import Watcher, Watchers
from model_training.training.validation import validation_scores
from service.bundle.network import build_network
from service.engines.machine import device_kind
from service.errors import CalibrantError

WEIGHTS: Final = "model.safetensors"
"""File of the trained weights in a run's folder."""

RECORD: Final = "training.json"
"""File that records how the weights were trained."""

GRADIENT_NORM: Final = 5.0
"""Gradients are clipped to this norm, so that one odd batch cannot ruin the weights."""

SAMPLES: Final = "samples"
"""Folder of the preprocessed samples in a run's folder, removed when the run finishes."""


class OutOfMemory(CalibrantError, title="Out of memory", status=507):
    """A training step needs more memory than the device has."""


def train(  # noqa: PLR0913 - what, from where, to where, and how
    recipe: Recipe,
    data: Path,
    run: Path,
    *,
    seed: int,
    group: Group,
    watchers: Sequence[Watcher] = (),
    until: int | None = None,
) -> None:
    """Train the recipe's network and write weights and record to the folder `run`.

    Called again with the same arguments, a killed run resumes from its last checkpoint and reaches the same weights. The
    weights of the last step are kept: validation is shown, never used to choose.

    Args:
        recipe: what to train.
        data: folder of the data set.
        run: folder of the run.
        seed: of the initial weights and of every batch.
        group: the processes that share each batch.
        watchers: told of every step.
        until: stop after this step, with a checkpoint instead of weights.

    Raises:
        DataError: the data set is not as the recipe expects, or the folder holds another run.
        OutOfMemory: a step did not fit into memory.
        ValueError: the loss became NaN.
    """
    _reject_unfit(run, recipe, group)
    cases, validation_cases = _cases(recipe, data)
    samples, validation = _prepared(recipe, run, group, cases, validation_cases)
    network, optimiser = _begun(recipe, group, seed)
    loss_of = ACEDiceCELoss(recipe.binning, ace_weight=0.0)
    identity = _Identity(recipe, seed, cases)
    position = load_checkpoint(run, network, optimiser, identity.after)
    mixed = trains_in_bf16(network, len(recipe.service.channels), recipe.service.patch_size)
    shared = group.share(network)
    batches = Batches(samples, recipe, seed, group, range(position.step + 1, (until or recipe.schedule.steps) + 1))
    watcher = Watchers(watchers)
    started = time.monotonic() - position.seconds

    for step, batch in zip(batches.steps, batches.loader(), strict=True):
        set_learning_rate(optimiser, recipe.schedule, step)
        loss_of.ace_weight = _ace_weight(recipe, step)
        with _reported_out_of_memory(recipe, group):
            terms = descend(shared, optimiser, loss_of, _moved(batch, group.device), mixed=mixed)
        values = _mean_over(group, terms, loss_of)
        watcher.step(step, step * recipe.schedule.batch_size / len(samples), values)
        if step % recipe.schedule.validate_every == 0 or step == batches.steps[-1]:
            scores = validation_scores(network, validation, recipe.service, group)
            watcher.validated(step, scores)
            position.advance(step, time.monotonic() - started, scores, values)
            if group.leads:
                save_checkpoint(run, network, optimiser, position, identity.after(step))

    if group.leads and until is None:
        _write_run(run, network, recipe, position, seed=seed, train_cases=len(samples))
    group.wait()


def _reject_unfit(run: Path, recipe: Recipe, group: Group) -> None:
    if (run / RECORD).exists():
        msg = f"{run} holds a finished run. Choose another folder for a new one."
        raise DataError(msg)
    if recipe.schedule.batch_size % group.size:
        msg = f"A batch of {recipe.schedule.batch_size} images cannot be shared by {group.size} processes evenly: choose another number of processes."
        raise DataError(msg)


def _cases(recipe: Recipe, data: Path) -> tuple[list[Case], list[Case]]:
    """Return the cases to train on and those to validate with."""
    splits = recipe.cases(data)
    return [case for split in recipe.train_splits for case in splits[split]], splits[recipe.validation_split]


def _prepared(
    recipe: Recipe, run: Path, group: Group, cases: Sequence[Case], validation: Sequence[Case]
) -> tuple[list[Sample], list[Sample]]:
    """Return training and validation samples; the first process computes them, the others then find them on disk."""
    folder = run / SAMPLES / hashlib.sha256(recipe.service.model_dump_json().encode()).hexdigest()[:12]
    if not group.leads:
        group.wait()
    train_samples = stored_samples(cases, recipe.service, folder)
    validation_samples = stored_samples(validation, recipe.service, folder)
    if group.leads:
        group.wait()
    return train_samples, validation_samples


def _begun(recipe: Recipe, group: Group, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the network with fresh weights, and its optimiser."""
    torch.manual_seed(seed)
    network = build_network(recipe.service.network).to(group.device)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.schedule.weight_decay)
    return network, optimiser


def _ace_weight(recipe: Recipe, step: int) -> float:
    return recipe.ace_weight if step > recipe.ace_after else 0.0


class _Identity:
    """What the weights of a run follow from, apart from code and machine: recipe, seed and data."""

    def __init__(self, recipe: Recipe, seed: int, cases: Sequence[Case]) -> None:
        self._recipe = recipe
        names = [case.name for case in cases]
        self._before = [
            recipe.service.model_dump_json(),
            repr(recipe.schedule),
            recipe.augmentation.__name__,
            seed,
            names,
        ]

    def after(self, step: int) -> str:
        """Return the identity of the weights after a step, as a hash.

        While the steps use Dice and cross-entropy alone, the identity is the same for every loss that may follow.
        """
        facts = list(self._before)
        if step > self._recipe.ace_after:
            facts += [self._recipe.binning, self._recipe.ace_weight, self._recipe.ace_after]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def set_learning_rate(optimiser: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Set the learning rate of a step, counted from 1."""
    for parameters in optimiser.param_groups:
        parameters["lr"] = schedule.learning_rate * learning_rate_factor(step - 1, schedule)


def learning_rate_factor(step: int, schedule: Schedule) -> float:
    """Return the fraction of the peak learning rate at a step, counted from 0: linear warm-up, then half a cosine to 0."""
    if step < schedule.warmup_steps:
        return schedule.warmup_from + (1 - schedule.warmup_from) * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


def _moved(batch: Batch, device: torch.device) -> Batch:
    images, labels = batch
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def descend(
    network: nn.Module, optimiser: torch.optim.Optimizer, loss_of: ACEDiceCELoss, batch: Batch, *, mixed: bool
) -> dict[str, Tensor]:
    """Take one gradient step on a batch and return the terms of its loss before the step.

    Args:
        network: on the device of the batch.
        optimiser: of its parameters.
        loss_of: logits and labels -> terms.
        batch: images (B, C, D, H, W) and labels (B, 1, D, H, W).
        mixed: compute the network in bfloat16, its weights staying float32.
    """
    images, labels = batch
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
        logits = network(images)
    terms = loss_of.terms(logits, labels)
    optimiser.zero_grad(set_to_none=True)
    terms["total"].backward()
    nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    optimiser.step()
    return terms


@contextmanager
def _reported_out_of_memory(recipe: Recipe, group: Group) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On the CPU torch raises a plain RuntimeError.
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        patch = " x ".join(map(str, recipe.service.patch_size))
        msg = (
            f"{group.device} ran out of memory over a step of {recipe.schedule.batch_size // group.size} images in patches of {patch}. "
            "Take a device with more memory, share the batch between several (torchrun), or the recipe's -small variant. "
            "The last checkpoint is kept."
        )
        raise OutOfMemory(msg) from error


def _mean_over(group: Group, terms: Mapping[str, Tensor], loss_of: ACEDiceCELoss) -> dict[str, float]:
    """Return the mean of each loss term over the processes, which have equal shares of the batch.

    Raises:
        ValueError: the loss was given values out of range.
    """
    read = torch.stack([term.detach() for term in terms.values()]).tolist()  # a GPU is waited for once
    loss_of.check()
    gathered = group.gathered(dict(zip(terms, read, strict=True)))
    return {name: float(np.mean([values[name] for values in gathered])) for name in terms}


def _write_run(
    run: Path, network: nn.Module, recipe: Recipe, position: TrainingPosition, *, seed: int, train_cases: int
) -> None:
    """Write weights and record, and remove what only an unfinished run needs."""
    device = next(network.parameters()).device
    save_file(
        {name: tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}, run / f"{WEIGHTS}.part"
    )
    record = {
        "recipe": recipe.service.name,
        "train_splits": recipe.train_splits,
        "binning": recipe.binning,
        "ace_weight": recipe.ace_weight,
        "ace_after": recipe.ace_after,
        "torch": torch.__version__,
        "device": device_kind(device),
        "tf32": device.type == "cuda" and torch.backends.cudnn.conv.fp32_precision != "ieee",  # type: ignore[attr-defined]  # torch's types lack it
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seed": seed,
        "train_cases": train_cases,
        "steps": position.step,
        "seconds": round(position.seconds),
        "history": position.history,
    }
    (run / f"{RECORD}.part").write_text(json.dumps(record, indent=2) + "\n")
    # By rename, so that each file is complete when it appears; the weights first, since the record vouches for them.
    (run / f"{WEIGHTS}.part").replace(run / WEIGHTS)
    (run / f"{RECORD}.part").replace(run / RECORD)
    (run / CHECKPOINT).unlink()
    shutil.rmtree(run / SAMPLES)
