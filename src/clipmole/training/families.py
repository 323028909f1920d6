"""Families of generators: which one an AI-generated image is most like, fitted to a detector after its training.

In: a trained network, its images, and the setting `families`. Out: further outputs of its head, set in place, and a
confusion table. The outputs are a multinomial logistic regression on what the head reads, pooled over an image's views
in the same way as its logit. Half of the training images are shown as stored and half equalised, and the table is about
equalised images alone, so that a family is not recognised by its compression. It knows nothing of verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clipmole.config import Families, TrainConfig
from clipmole.data import VARIANTS, windows
from clipmole.data.sample import Sample
from clipmole.data.samples import UNNAMED, Variant, limit_samples
from clipmole.data.training_set import TrainingData
from clipmole.errors import ConfigError, MissingDependency
from clipmole.images.crops import cut_crops
from clipmole.inference.detector import pooled, shares_of
from clipmole.models.network import MoLENetwork
from clipmole.plumbing.progress import ProgressReporter
from clipmole.plumbing.seeding import sample_rng
from clipmole.report.families import family_section, summary
from clipmole.report.page import markdown_sections

FEWEST, FEWEST_VAL = 20, 5  # a family needs so many images in `train` and in `val`
MOST = 200  # most images of a generator that are used, in each of these splits
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse regularisation C, of which `val` chooses one
ITERATIONS = 300  # most steps of L-BFGS


def families_of(setting: bool | Mapping[str, str], data: TrainingData) -> dict[str, str]:
    """Generator -> family, for all generators that are learnt.

    Args:
        setting: `TrainConfig.families`.
        data: the images of the run.

    Returns:
        The families with enough images; {} if the setting asks for none.

    Raises:
        ConfigError: fewer than two families have enough images, or the setting names a generator that no training image
            is by.
        MissingDependency: scikit-learn is not installed.
    """
    if not setting:
        return {}
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingDependency("scikit-learn", "train") from error
    table = setting if isinstance(setting, Mapping) else {}
    generators = {sample.generator for sample in data.train if sample.label} - {UNNAMED}
    if unknown := sorted(table.keys() - generators):
        raise ConfigError(
            f"families: no training image is by {unknown[0]!r}; there are {', '.join(sorted(generators))}"
        )
    families = {name: table.get(name, name) for name in sorted(generators)}
    counts = [Counter(families.get(s.generator) for s in part if s.label) for part in (data.train, data.val)]
    enough = {name for name in families.values() if counts[0][name] >= FEWEST and counts[1][name] >= FEWEST_VAL}
    if len(enough) < 2:
        found = ", ".join(f"{name}: {counts[0][name]} and {counts[1][name]}" for name in sorted(set(families.values())))
        raise ConfigError(
            f"families: two are needed with {FEWEST} training and {FEWEST_VAL} validation images each, and there are "
            f"{found or 'no generators with names'}; add images, or leave this setting out"
        )
    return {generator: family for generator, family in families.items() if family in enough}


def fit_families(
    network: MoLENetwork, families: dict[str, str], data: TrainingData, config: TrainConfig, progress: ProgressReporter
) -> None:
    """Fit the outputs for the families, set them in the network, and say how often they are right.

    Args:
        network: a network after its training. One that was extended may have outputs for families that no longer fit
            its features; they are replaced, or removed if there are no families.
        families: the result of `families_of`.
        data: the images of the run.
        config: the settings of the run.
        progress: follows the images, and gets the summary.
    """
    if not families:
        network.set_families(None, None)
        return
    names = tuple(sorted(set(families.values())))
    train = limit_samples([s for s in data.train if s.label and s.generator in families], MOST, config.seed)
    val = limit_samples([s for s in data.val if s.label], MOST, config.seed)
    train = [train[i] for i in sample_rng(config.seed, "families").permutation(len(train))]
    half = len(train) // 2
    parts = zip((train[:half], train[half:], val), (*VARIANTS, VARIANTS[1]), strict=True)
    stored, equalised, held_out = (features_of(network, *part, config, progress) for part in parts)
    truth = [
        np.array([names.index(families[s.generator]) if s.generator in families else len(names) for s in samples])
        for samples in (train, val)
    ]
    weight, bias = fitted(np.concatenate([stored, equalised]), truth[0], held_out, truth[1])
    found = Families(names=names, confusion=confusion(shares_of(held_out @ weight.T + bias), truth[1]))
    layer = nn.Linear(weight.shape[1], len(names)).requires_grad_(False)
    layer.weight.copy_(torch.from_numpy(weight))
    layer.bias.copy_(torch.from_numpy(bias))
    network.set_families(found, layer.to(network.head.weight.device))
    progress.say(summary(found))


@torch.inference_mode()
def features_of(
    network: MoLENetwork, samples: Sequence[Sample], variant: Variant, config: TrainConfig, progress: ProgressReporter
) -> NDArray[np.float64]:
    """What the head reads of each sample (n, F), pooled over the sample's views."""
    device, rows = network.eval().head.weight.device, []
    shown = progress.track(windows(samples, variant, config.seed), f"families, {variant}", len(samples))
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        for rgb in shown:
            crops = cut_crops(rgb, config.preprocess, max_tiles=config.preprocess.max_tiles).pixels
            tokens = network.before(torch.from_numpy(crops).to(device), 0)
            read = network.features(tokens, 0).float().cpu().numpy()
            rows.append(pooled(read, config.preprocess.whole_weight))
    return np.stack(rows)


def fitted(
    features: NDArray[np.float64], truth: NDArray[np.int64], val: NDArray[np.float64], val_truth: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (k, F) and biases (k,) of a multinomial logistic regression; C is chosen by the log loss on `val`.

    All families have the same weight, however many images they have.

    Args:
        features: (n, F), of training images.
        truth: (n,) their families, 0..k-1.
        val: (m, F), of validation images.
        val_truth: (m,) their families; k for another generator, whose images play no part in the choice.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1
    standard, known = (features - mean) / scale, val_truth < len(np.unique(truth))
    best: tuple[float, NDArray[np.float64], NDArray[np.float64]] | None = None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=ITERATIONS, class_weight="balanced").fit(standard, truth)
        coefficients, intercept = model.coef_, model.intercept_
        if len(coefficients) == 1:  # for two families it is the difference between their logits
            coefficients, intercept = (np.concatenate([-each / 2, each / 2]) for each in (coefficients, intercept))
        weight = coefficients / scale
        bias = intercept - weight @ mean
        shares = shares_of(val[known] @ weight.T + bias)
        loss = -float(np.log(np.maximum(shares[np.arange(len(shares)), val_truth[known]], 1e-12)).mean())
        if best is None or loss < best[0]:
            best = loss, weight, bias
    assert best is not None
    return best[1:]


def confusion(shares: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    """The table (k + 1, k + 1) of `Families`.

    Args:
        shares: (m, k) of each family in each image. A family is named if its share is over a half.
        truth: (m,) the true families, 0..k-1; k for other generators.
    """
    k = shares.shape[1]
    said = np.where(shares.max(axis=1) > 0.5, shares.argmax(axis=1), k)
    table = np.zeros((k + 1, k + 1), dtype=np.int64)
    np.add.at(table, (truth, said), 1)
    return tuple(tuple(row) for row in table.tolist())


def card_lines(families: Families) -> list[str]:
    """The lines of the model card's section: the confusion table, and what it does not show."""
    return [*"\n\n".join(markdown_sections([family_section(families)])).split("\n"), ""]
