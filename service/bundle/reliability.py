"""Case records -> the data of reliability diagrams, as one document from which files, pages and reports are drawn.

Per structure: the diagram of all voxels pooled, and the dataset reliability histogram, which keeps the images apart
(Barfoot et al., arXiv 2506.03942, section 3): for each confidence bin, the number of images by observed frequency.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import numpy.typing as npt

from service.bundle.card import CaseRecord
from service.calibration.histogram import BINS, ReliabilityHistogram, bin_index
from service.calibration.scores import ace, ece, mce
from service.schemas import Reliability, StructureReliability


def reliability_of(records: Sequence[CaseRecord], structures: Sequence[str], source: str) -> Reliability:
    """Return the reliability of each structure over the cases.

    Args:
        records: one or more cases.
        structures: names of the rows 1 .. C-1 of the records.
        source: data set, split and date of the cases; printed on every diagram.
    """
    histograms = [record.sums().histogram for record in records]
    pooled = reduce(add, histograms)
    images = images_per_cell(histograms)
    scores = {name: score(pooled) for name, score in {"ece": ece, "ace": ace, "mce": mce}.items()}
    return Reliability(
        source=source,
        n_cases=len(records),
        n_persons=len({record.person for record in records}),
        structures=[
            StructureReliability(
                name=name,
                count=pooled.count[c].tolist(),
                mean_p=_quotient(pooled.sum_p[c], pooled.count[c]),
                frequency=_quotient(pooled.sum_y[c], pooled.count[c]),
                images=images[c].tolist(),
                **{key: None if np.isnan(values[c]) else float(values[c]) for key, values in scores.items()},
            )
            for c, name in enumerate(structures, start=1)
        ],
    )


def images_per_cell(histograms: Sequence[ReliabilityHistogram]) -> npt.NDArray[np.int64]:
    """Return the number of images per confidence bin and observed frequency, (C, M, M): [class, confidence, frequency].

    Frequencies are binned like probabilities. An image counts once in each class and confidence bin in which it has
    voxels; an image whose reference lacks a class does not count for that class.
    """
    classes = len(histograms[0].count)
    cells = np.zeros((classes, BINS, BINS), np.int64)
    for histogram in histograms:
        filled = (histogram.count > 0) & histogram.present[:, np.newaxis]
        c, k = np.nonzero(filled)
        frequency = histogram.sum_y[filled] / histogram.count[filled]
        np.add.at(cells, (c, k, bin_index(frequency.astype(np.float32))), 1)
    return cells


def _quotient(total: npt.NDArray[np.generic], count: npt.NDArray[np.int64]) -> list[float | None]:
    return [float(t / n) if n else None for t, n in zip(total, count, strict=True)]
