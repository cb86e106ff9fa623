"""The training loop, read from top to bottom: recipe and data in, weights out."""

import datetime as dt
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from model_training.config import Recipe, Schedule
from model_training.data import Sample, load_sample
from model_training.losses import ACEDiceCELoss
from model_training.progress import Progress
from model_training.transforms import augmentation, batch_of
from service.bundle.network import build_network
from service.bundle.schema import ServiceConfig
from service.pipeline.infer import sliding_window_logits

WEIGHTS: Final = "model.safetensors"
"""File of the trained weights in a run's folder."""

RECORD: Final = "training.json"
"""File that says how they came about."""

GRADIENT_NORM: Final = 5.0
"""Gradients are clipped to this norm: one odd batch must not throw the weights away."""


def train(recipe: Recipe, data: Path, run: Path, *, seed: int, device: torch.device, progress: Progress) -> None:
    """Train the recipe's network and write weights and record to the folder `run`.

    The weights of the last step are kept: validation is shown, never used to choose.

    Raises:
        DataError: the data set is not as the recipe expects.
        ValueError: the loss became NaN.
    """
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    splits = recipe.cases(data)
    samples = [load_sample(case, recipe.service) for split in recipe.train_splits for case in splits[split]]
    validation = [load_sample(case, recipe.service) for case in splits[recipe.validation_split]]

    network = build_network(recipe.service.network).to(device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.schedule.learning_rate, weight_decay=recipe.schedule.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, recipe.schedule))
    loss_of = ACEDiceCELoss(recipe.binning, ace_weight=0.0)
    augment = augmentation(recipe.service, seed)
    history: list[dict[str, float]] = []
    started = time.monotonic()

    for step in range(1, recipe.schedule.steps + 1):
        chosen = order.integers(len(samples), size=recipe.schedule.batch_size)
        images, labels = batch_of([samples[i] for i in chosen], augment)
        with torch.autocast(device.type, torch.bfloat16):
            logits = network(images.to(device))
        loss_of.ace_weight = recipe.ace_weight if step > recipe.ace_after else 0.0
        terms = loss_of(logits, labels.to(device))
        optimiser.zero_grad(set_to_none=True)
        terms["total"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
        optimiser.step()
        scheduler.step()

        progress.step(step, {name: term.item() for name, term in terms.items()})
        if step % recipe.schedule.validate_every == 0 or step == recipe.schedule.steps:
            dsc = validation_dsc(network, validation, recipe.service, device)
            history.append({"step": step, "validation_dsc": dsc, **{k: t.item() for k, t in terms.items()}})
            progress.validated(step, dsc)

    facts = {
        "seed": seed,
        "train_cases": len(samples),
        "seconds": round(time.monotonic() - started),
        "history": history,
    }
    _write_run(run, network, recipe, facts)


def _write_run(run: Path, network: nn.Module, recipe: Recipe, facts: dict[str, Any]) -> None:
    run.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.cpu().state_dict().items()}, run / WEIGHTS)
    record = {
        "recipe": recipe.service.name,
        "steps": recipe.schedule.steps,
        "train_splits": recipe.train_splits,
        "binning": recipe.binning,
        "ace_weight": recipe.ace_weight,
        "ace_after": recipe.ace_after,
        "torch": torch.__version__,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **facts,
    }
    (run / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def learning_rate_factor(step: int, schedule: Schedule) -> float:
    """Return the fraction of the peak learning rate at a step: linear warm-up, then half a cosine to 0."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    return 0.5 * (1 + float(np.cos(np.pi * done)))


def validation_dsc(network: nn.Module, samples: list[Sample], config: ServiceConfig, device: torch.device) -> float:
    """Return the mean foreground DSC over whole validation images on the network's grid: a quick look, not the card."""
    network.eval()
    scores = []
    for sample in samples:
        mask = sliding_window_logits(network, sample.image.to(device), config).argmax(dim=0).cpu()
        for c in range(1, len(config.labels)):
            predicted, reference = mask == c, sample.label[0] == c
            if reference.any():
                scores.append(2 * float((predicted & reference).sum()) / float(predicted.sum() + reference.sum()))
    network.train()
    return float(np.mean(scores))
