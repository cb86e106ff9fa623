"""Preprocessed cases of a run, stored on disk: all are checked before training starts and read when needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model_training.data.case import Case, Sample, load_sample
from service.bundle.schema import ServiceConfig


def stored_samples(cases: Sequence[Case], config: ServiceConfig, folder: Path) -> list[Sample]:
    """Return the cases as samples whose tensors are mapped from files in the folder; existing files are reused.

    A data set may be larger than memory: with mapped files the operating system decides what stays in memory.

    Args:
        cases: cases to read and preprocess.
        config: how to preprocess them.
        folder: used for this configuration alone.

    Raises:
        DataError: as `load_sample`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for case in cases:
        image, label = folder / f"{case.name}.image.npy", folder / f"{case.name}.label.npy"
        if not (image.exists() and label.exists()):
            sample = load_sample(case, config)
            _write(image, sample.image)
            _write(label, sample.label)
        samples.append(_opened(case, image, label))
    return samples


@dataclass(frozen=True, slots=True, eq=False)
class StoredSample(Sample):
    """A sample that another process opens again from its files, instead of receiving a copy of it."""

    files: tuple[Path, Path]

    def __reduce__(self) -> tuple[Callable[..., Sample], tuple[object, ...]]:
        return _opened, (self.case, *self.files)


def _opened(case: Case, image: Path, label: Path) -> Sample:
    return StoredSample(case, _mapped(image), _mapped(label), (image, label))


def _write(file: Path, tensor: torch.Tensor) -> None:
    part = file.with_suffix(".part.npy")
    np.save(part, tensor.numpy())
    part.replace(file)


def _mapped(file: Path) -> torch.Tensor:
    # Copy-on-write: torch requires writable memory, and writes do not reach the file.
    return torch.from_numpy(np.load(file, mmap_mode="c"))
