"""The head's start: a logistic regression on the class tokens in the prefix cache.

In: a network, its prefix cache and the samples. Out: the weights of the head, in place. Its weights for other class
tokens (of adapted blocks, of the last one) start at 0. It knows nothing of the loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from clipmole.config import TrainConfig
from clipmole.data.sample import Sample
from clipmole.errors import ConfigError, MissingDependency
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import Say
from clipmole.training.prefix_cache import PrefixCache
from clipmole.training.sampling import POWERS, stratum

ITERATIONS = 300  # of L-BFGS at most


def sample_weights(samples: Sequence[Sample], sampling: str) -> NDArray[np.float64]:
    """Weight (n,) of each sample: how often an epoch shows it on average, scaled to a mean of 1 over all samples."""
    if sampling == "every":
        return np.ones(len(samples))
    count = Counter((sample.label, stratum(sample)) for sample in samples)
    weights = np.array([count[sample.label, stratum(sample)] ** (POWERS[sampling] - 1.0) for sample in samples])
    labels = np.array([sample.label for sample in samples])
    for label in (0, 1):
        weights[labels == label] *= len(samples) / 2 / weights[labels == label].sum()
    return weights


@torch.no_grad()
def start_head(
    network: MoLENetwork, cache: PrefixCache, samples: Sequence[Sample], config: TrainConfig, say: Say
) -> None:
    """Set the head to the logistic regression with C = `config.head_start` on all kept views.

    Raises `ConfigError` if no head block lies among those that are kept, `MissingDependency` without scikit-learn.
    """
    if not cache.carried:
        raise ConfigError(
            f"head_start: none of mole.head_blocks={network.head_blocks} lies before block {cache.start}, where "
            "the kept tokens end; name earlier ones, or leave head_start out"
        )
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingDependency("scikit-learn", "train") from error
    width = network.tower.config.width
    features = np.concatenate(
        [
            F.layer_norm(torch.from_numpy(cache.class_tokens(view)), (width,)).flatten(1).numpy()
            for view in range(cache.count)
        ]
    )
    labels = np.tile([sample.label for sample in samples], cache.count)
    weights = np.tile(sample_weights(samples, config.sampling), cache.count)
    say(f"the head starts as a logistic regression on {features.shape[1]:,} features of {len(labels):,} views")
    fitted = LogisticRegression(C=config.head_start, max_iter=ITERATIONS).fit(features, labels, sample_weight=weights)
    network.head.weight.zero_()
    own = network.tower.config.feature_dim
    network.head.weight[0, own : own + features.shape[1]] = torch.from_numpy(fitted.coef_[0]).float()
    network.head.bias.fill_(float(fitted.intercept_[0]))
