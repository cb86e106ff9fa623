"""The training loop, read from top to bottom: recipe and data in, weights out."""

import datetime as dt
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from monai.transforms import Compose
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from model_training.config import Recipe, Schedule
from model_training.data.case import Case, DataError, Sample
from model_training.data.samples import stored_samples
from model_training.losses.ace import ACEDiceCELoss
from model_training.training.checkpoint import NAME as CHECKPOINT
from model_training.training.checkpoint import load_checkpoint, save_checkpoint
from model_training.training.parallel import Group
from model_training.training.precision import trains_in_bf16
from model_training.training.progress import Watcher
from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig
from service.calibration.scores import ace
from service.errors import CalibrantError
from service.pipeline.infer import sliding_window_logits
from service.pipeline.predict import reliability_histogram

WEIGHTS: Final = "model.safetensors"
"""File of the trained weights in a run's folder."""

RECORD: Final = "training.json"
"""File that says how they came about."""

GRADIENT_NORM: Final = 5.0
"""Gradients are clipped to this norm: one odd batch must not throw the weights away."""

SAMPLES: Final = "samples"
"""Folder of the samples within a run's folder, as long as it is under way."""

_MOST_WORKERS = 8


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

    A run that was killed goes on from its last checkpoint to the same weights, when called again with the same
    arguments. The weights of the last step are kept: validation is shown, never used to choose.

    Args:
        recipe: what to train.
        data: folder of the data set.
        run: folder of the run.
        seed: of the first weights and of every batch.
        group: the processes that share each batch between them.
        watchers: hear of every step.
        until: stop after this step, with a checkpoint instead of weights.

    Raises:
        DataError: the data set is not as the recipe expects, or the folder holds another run.
        OutOfMemory: a step did not fit into memory.
        ValueError: the loss became NaN.
    """
    _reject_unfit(run, recipe, group)
    splits = recipe.cases(data)
    cases = [case for split in recipe.train_splits for case in splits[split]]
    samples, validation = _prepared(recipe, run, group, cases, splits[recipe.validation_split])

    torch.manual_seed(seed)
    network = build_network(recipe.service.network).to(group.device)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=recipe.schedule.weight_decay)
    loss_of = ACEDiceCELoss(recipe.binning, ace_weight=0.0)
    identity = _Identity(recipe, seed, cases)
    position = load_checkpoint(run, network, optimiser, identity.after)
    mixed = trains_in_bf16(network, len(recipe.service.channels), recipe.service.patch_size)
    shared = DistributedDataParallel(network) if group.size > 1 else network
    last = until or recipe.schedule.steps
    batches = _Batches(samples, recipe, seed, group, range(position.step + 1, last + 1))
    started = time.monotonic() - position.seconds

    for step, batch in zip(batches.steps, _loaded(batches, group), strict=True):
        for parameters in optimiser.param_groups:
            parameters["lr"] = recipe.schedule.learning_rate * learning_rate_factor(step - 1, recipe.schedule)
        loss_of.ace_weight = recipe.ace_weight if step > recipe.ace_after else 0.0
        with _told_when_memory_is_out(recipe, group):
            images, labels = (part.to(group.device, non_blocking=True) for part in batch)
            terms = _descend(shared, optimiser, loss_of, (images, labels), mixed=mixed)
        values = _mean_over(group, {name: term.item() for name, term in terms.items()})
        for watcher in watchers:
            watcher.step(step, step * recipe.schedule.batch_size / len(samples), values)
        if step % recipe.schedule.validate_every == 0 or step == last:
            scores = validation_scores(network, validation, recipe.service, group)
            for watcher in watchers:
                watcher.validated(step, scores)
            validated = {f"validation_{name}": score for name, score in scores.items()}
            position.history.append({"step": step, **validated, **values})
            position.step, position.seconds = step, time.monotonic() - started
            if group.leads:
                save_checkpoint(run, network, optimiser, position, identity.after(step))

    facts = {"seed": seed, "train_cases": len(samples), "steps": position.step, "seconds": round(position.seconds)}
    if group.leads and until is None:
        _write_run(run, network, recipe, facts | {"history": position.history})
    group.wait()


def _reject_unfit(run: Path, recipe: Recipe, group: Group) -> None:
    if (run / RECORD).exists():
        msg = f"{run} holds a finished run. Choose another folder for a new one."
        raise DataError(msg)
    if recipe.schedule.batch_size % group.size:
        msg = f"A batch of {recipe.schedule.batch_size} images cannot be shared by {group.size} processes evenly: choose another number of processes."
        raise DataError(msg)


def _descend(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss_of: ACEDiceCELoss,
    batch: tuple[Tensor, Tensor],
    *,
    mixed: bool,
) -> dict[str, Tensor]:
    """Take one step down the gradient of a batch and return the terms of its loss before that step."""
    images, labels = batch
    with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
        logits = network(images)
    terms = loss_of.terms(logits, labels)
    optimiser.zero_grad(set_to_none=True)
    terms["total"].backward()
    nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
    optimiser.step()
    return terms


class _Identity:
    """What makes a run this run: everything that its weights follow from, but for the code and the machine."""

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
        """Return the identity of the weights after a step.

        As long as the steps are of Dice and cross-entropy alone, they are the same for every loss that may follow.
        """
        facts = list(self._before)
        if step > self._recipe.ace_after:
            facts += [self._recipe.binning, self._recipe.ace_weight, self._recipe.ace_after]
        return hashlib.sha256(repr(facts).encode()).hexdigest()


def _prepared(
    recipe: Recipe, run: Path, group: Group, cases: Sequence[Case], validation: Sequence[Case]
) -> tuple[list[Sample], list[Sample]]:
    """Return both sets of samples; the first process computes them, the others find them there."""
    folder = run / SAMPLES / hashlib.sha256(recipe.service.model_dump_json().encode()).hexdigest()[:12]
    if not group.leads:
        group.wait()
    samples = stored_samples(cases, recipe.service, folder)
    looked_at = stored_samples(validation, recipe.service, folder)
    if group.leads:
        group.wait()
    return samples, looked_at


class _Batches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """This process's share of the batch of each step."""

    def __init__(self, samples: list[Sample], recipe: Recipe, seed: int, group: Group, steps: range) -> None:
        self.steps = steps
        self._samples = samples
        self._augment = recipe.augmentation(recipe.service)
        self._schedule = recipe.schedule
        self._seed = seed
        self._group = group

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = draw_batch(
            self._samples, self._augment, self._schedule.batch_size, seed=self._seed, step=self.steps[index]
        )
        share = len(images) // self._group.size
        mine = slice(self._group.rank * share, (self._group.rank + 1) * share)
        return images[mine], labels[mine]


def _loaded(batches: _Batches, group: Group) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches in order; beside a GPU they are drawn ahead by processes of their own."""
    cuda = group.device.type == "cuda"
    workers = min(_MOST_WORKERS, (os.cpu_count() or 1) // group.size) if cuda else 0
    return DataLoader(batches, batch_size=None, shuffle=False, num_workers=workers, pin_memory=cuda)


@contextmanager
def _told_when_memory_is_out(recipe: Recipe, group: Group) -> Iterator[None]:
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


def _mean_over(group: Group, values: dict[str, float]) -> dict[str, float]:
    """Return the mean of the values over the processes: each had an equal share of the batch."""
    everyone = group.gathered(values)
    return {name: float(np.mean([one[name] for one in everyone])) for name in values}


def _write_run(run: Path, network: nn.Module, recipe: Recipe, facts: dict[str, Any]) -> None:
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
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **facts,
    }
    (run / f"{RECORD}.part").write_text(json.dumps(record, indent=2) + "\n")
    # Whoever finds one of these files finds all of it, and the weights no later than their record.
    (run / f"{WEIGHTS}.part").replace(run / WEIGHTS)
    (run / f"{RECORD}.part").replace(run / RECORD)
    (run / CHECKPOINT).unlink()
    shutil.rmtree(run / SAMPLES)


def draw_batch(
    samples: list[Sample], augment: Compose, batch_size: int, *, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the batch of a step: images (B, C, D, H, W) float32 and labels (B, 1, D, H, W), chosen and augmented at random.

    The draw follows from seed and step alone, so that a run that was interrupted goes on with the batches it would
    have seen.
    """
    generator = np.random.default_rng([seed, step])
    chosen = generator.integers(len(samples), size=batch_size)
    augment.set_random_state(int(generator.integers(1 << 32)))
    drawn = [augment({"image": samples[i].image, "label": samples[i].label}) for i in chosen]
    patches = [patch for one in drawn for patch in (one if isinstance(one, list) else [one])]
    # MONAI's tensors with metadata would make every operation of the network a slower call of Python.
    images = torch.stack([patch["image"].as_subclass(torch.Tensor) for patch in patches])
    labels = torch.stack([patch["label"].as_subclass(torch.Tensor) for patch in patches])
    return images, labels


def learning_rate_factor(step: int, schedule: Schedule) -> float:
    """Return the fraction of the peak learning rate at a step: linear warm-up, then half a cosine to 0."""
    if step < schedule.warmup_steps:
        return schedule.warmup_from + (1 - schedule.warmup_from) * (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


def validation_scores(
    network: nn.Module, samples: Sequence[Sample], config: ServiceConfig, group: Group
) -> dict[str, float]:
    """Return mean foreground ``dsc`` and ``ace`` of whole validation images on the network's grid.

    A quick look, not the card: each structure that an image holds counts once. The processes share the images.
    """
    network.eval()
    mine = [
        score
        for sample in samples[group.rank :: group.size]
        for score in _structure_scores(network, sample, config, group.device)
    ]
    network.train()
    scores = np.array([score for one in group.gathered(mine) for score in one]).reshape(-1, 2)
    dsc, gap = scores.mean(axis=0) if len(scores) else (float("nan"), float("nan"))
    return {"dsc": float(dsc), "ace": float(gap)}


def _structure_scores(
    network: nn.Module, sample: Sample, config: ServiceConfig, device: torch.device
) -> list[tuple[float, float]]:
    """Return DSC and ACE of each structure that the image holds."""
    probs = sliding_window_logits(network, sample.image.to(device), config).softmax(dim=0)
    labels = sample.label[0].to(device)
    rows = [(0,), *(structure.channels for structure in config.structures)]
    gaps = ace(reliability_histogram(probs, labels, rows))
    mask, scores = probs.argmax(dim=0), []
    for channels, gap in zip(rows[1:], gaps[1:], strict=True):
        of_structure = torch.tensor(channels, device=device)
        predicted, reference = torch.isin(mask, of_structure), torch.isin(labels, of_structure)
        if reference.any():
            dsc = 2 * float((predicted & reference).sum()) / float(predicted.sum() + reference.sum())
            scores.append((dsc, float(gap)))
    return scores
