"""Every logit of an evaluation: a table in memory, kept in a file that survives a kill.

In: logits as they are made. Out: a `ScoreTable`. It knows nothing of detectors, figures or reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipmole.records import Sample


@dataclass(frozen=True)
class ScoreTable:
    """Every logit of an evaluation.

    Attributes:
        samples: the n images that could be read.
        sets: (n,) name of the set each belongs to.
        detectors, conditions: names, in the order of the axes.
        logits: (detectors, conditions, n) float64, positive towards AI-generated.
    """

    samples: tuple[Sample, ...]
    sets: NDArray[np.str_]
    detectors: tuple[str, ...]
    conditions: tuple[str, ...]
    logits: NDArray[np.float64]
