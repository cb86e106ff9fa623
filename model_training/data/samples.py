"""The cases of a run on the network's grid, on disk: checked before training starts, read as they are needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from model_training.data.case import Case, Sample, load_sample
from service.bundle.schema import ServiceConfig


def stored_samples(cases: Sequence[Case], config: ServiceConfig, folder: Path) -> list[Sample]:
    """Return the cases as samples whose tensors lie in files of the folder; what is there is not computed again.

    A data set may be larger than memory: the tensors are mapped, and the system reads and forgets as it sees fit.

    Args:
        cases: to be read and preprocessed.
        config: how.
        folder: for this configuration alone.

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
        samples.append(Sample(case, _mapped(image), _mapped(label)))
    return samples


def _write(file: Path, tensor: torch.Tensor) -> None:
    part = file.with_suffix(".part.npy")
    np.save(part, tensor.numpy())
    part.replace(file)


def _mapped(file: Path) -> torch.Tensor:
    # "c": what is written to such a tensor stays in memory; torch wants its memory writable.
    return torch.from_numpy(np.load(file, mmap_mode="c"))
