"""Figures against formulas written another way, their named corner cases, and the bootstrap's coverage."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from clipmole import metrics
from clipmole.errors import ConfigError, DataError

# Few distinct scores, so that ties are the rule.
TIED = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4).map(float)), min_size=1, max_size=40)
ANY_SCORE = st.floats(-1e300, 1e300)
UNTIED = st.lists(st.tuples(st.integers(0, 1), ANY_SCORE), min_size=1, max_size=40)


def loop_average_precision(y: list[int], s: list[float]) -> float:
    """Precision at each generated image, with all that score as high as it, averaged."""
    precisions = []
    for label, score in zip(y, s, strict=True):
        if label:
            above = [other for other, value in zip(y, s, strict=True) if value >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


def pairwise_auroc(y: list[int], s: list[float]) -> float:
    """Share of (generated, photograph) pairs in the right order, half for a tie."""
    ai = [score for label, score in zip(y, s, strict=True) if label]
    real = [score for label, score in zip(y, s, strict=True) if not label]
    return sum((a > r) + 0.5 * (a == r) for a in ai for r in real) / (len(ai) * len(real))


@given(st.one_of(TIED, UNTIED))
def test_ranking_figures_equal_their_definitions_and_scikit_learn(pairs: list[tuple[int, float]]) -> None:
    y, s = [label for label, _ in pairs], [score for _, score in pairs]
    if len(set(y)) < 2:
        assert math.isnan(metrics.average_precision(y, s))
        assert math.isnan(metrics.auroc(y, s))
        return
    assert metrics.average_precision(y, s) == pytest.approx(loop_average_precision(y, s), abs=1e-12)
    assert metrics.auroc(y, s) == pytest.approx(pairwise_auroc(y, s), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn subtracts neighbouring scores, which may overflow
        assert metrics.average_precision(y, s) == pytest.approx(average_precision_score(y, s), abs=1e-12)
        assert metrics.auroc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)


@given(TIED, st.randoms())
def test_ranking_figures_see_neither_order_nor_scale(pairs: list[tuple[int, float]], random: Random) -> None:
    y, s = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    order = list(range(len(y)))
    random.shuffle(order)
    for figure in (metrics.average_precision, metrics.auroc):
        moved = figure(y[order], np.exp(s[order] / 2) * 7 - 3)
        assert moved == pytest.approx(figure(y, s), abs=1e-12, nan_ok=True)


def test_large_sets_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 20_000)
    s = np.round(rng.normal(y, 1.5), 2)
    assert metrics.average_precision(y, s) == pytest.approx(average_precision_score(y, s), abs=1e-12)
    assert metrics.auroc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "ap", "auroc"),
    [
        ([1, 2, 3, 4], 1.0, 1.0),
        ([4, 3, 2, 1], (1 / 3 + 2 / 4) / 2, 0.0),
        ([1, 3, 2, 4], (1 / 1 + 2 / 3) / 2, 0.75),
        ([5, 5, 5, 5], 0.5, 0.5),
        ([-1e4, 1e4, 1e4, 1e4], 2 / 3, 0.75),
    ],
    ids=["perfect", "inverted", "one swap", "all tied", "extreme and tied"],
)
def test_ranking_figures_of_four_images(scores: list[float], ap: float, auroc: float) -> None:
    assert metrics.average_precision([0, 0, 1, 1], scores) == pytest.approx(ap, abs=1e-15)
    assert metrics.auroc([0, 0, 1, 1], scores) == pytest.approx(auroc, abs=1e-15)


def test_probabilities_that_saturate_still_rank_as_logits_do() -> None:
    # What a metric that applies its own sigmoid gets wrong: it turns these logits into a tie at 1.
    assert metrics.average_precision([0, 1, 0, 1], [40.0, 50.0, 60.0, 70.0]) == pytest.approx((1 + 2 / 3) / 2)


def test_accuracies_count_a_score_on_the_threshold_as_a_photograph() -> None:
    y, s = [0, 0, 0, 1, 1], [0.1, 0.5, 0.6, 0.5, 0.9]
    assert metrics.accuracy(y, s, 0.5) == pytest.approx(3 / 5)
    assert metrics.class_accuracy(y, s, 0, 0.5) == pytest.approx(2 / 3)
    assert metrics.class_accuracy(y, s, 1, 0.5) == pytest.approx(1 / 2)
    assert metrics.balanced_accuracy(y, s, 0.5) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_calibration_error_by_hand() -> None:
    y = [0, 1, 0, 1, 1, 1]
    p = [0.10, 0.15, 0.12, 0.80, 0.85, 1.0]
    # Bin 0.1..0.2: 3 images, mean 0.37 / 3, share 1/3. Bin 0.8..0.9: mean 0.825, share 1. Last bin: exact.
    expected = 3 / 6 * abs(0.37 / 3 - 1 / 3) + 2 / 6 * (1 - 0.825)
    assert metrics.expected_calibration_error(y, p) == pytest.approx(expected, abs=1e-12)
    assert metrics.expected_calibration_error(y, p, bins=1) == pytest.approx(abs(3.02 / 6 - 4 / 6), abs=1e-12)


def test_calibration_error_at_its_limits() -> None:
    assert metrics.expected_calibration_error([0, 1], [0.0, 1.0]) == 0
    assert metrics.expected_calibration_error([1, 0], [0.0, 1.0]) == 1
    assert metrics.expected_calibration_error([0, 1], [0.5, 0.5]) == 0
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert metrics.expected_calibration_error(rng.random(len(p)) < p, p) < 0.005


FIGURES: list[Callable[..., float]] = [
    metrics.average_precision,
    metrics.auroc,
    metrics.expected_calibration_error,
    lambda y, s: metrics.accuracy(y, s, 0.5),
    lambda y, s: metrics.class_accuracy(y, s, 0, 0.5),
    lambda y, s: metrics.balanced_accuracy(y, s, 0.5),
]


@pytest.mark.parametrize("figure", FIGURES)
def test_nothing_has_no_figure(figure: Callable[..., float]) -> None:
    assert math.isnan(figure([], []))


def test_one_class_has_the_figures_that_need_no_other() -> None:
    assert math.isnan(metrics.average_precision([1, 1], [0.2, 0.9]))
    assert math.isnan(metrics.auroc([0, 0], [0.2, 0.9]))
    assert math.isnan(metrics.class_accuracy([1, 1], [0.2, 0.9], 0, 0.5))
    assert math.isnan(metrics.balanced_accuracy([1, 1], [0.2, 0.9], 0.5))
    assert metrics.class_accuracy([1, 1], [0.2, 0.9], 1, 0.5) == 0.5
    assert metrics.accuracy([1, 1], [0.2, 0.9], 0.5) == 0.5


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 2], [0.1, 0.2], "labels are 1"),
        ([0, -1], [0.1, 0.2], "labels are 1"),
        ([0, 0.7], [0.1, 0.2], "labels are 1"),  # not cut off to 0
        (["0", "1"], [0.1, 0.2], "labels are 1"),
        ([0, math.nan], [0.1, 0.2], "labels are 1"),
        ([0, 1], [0.1, math.nan], "not finite"),
        ([0, 1], [0.1, math.inf], "not finite"),
        ([0, 1], [0.1], r"labels \(2,\) and scores \(1,\)"),
        ([[0, 1]], [[0.1, 0.2]], "two vectors"),
    ],
)
def test_what_is_no_label_or_score_is_refused(
    figure: Callable[..., float], labels: object, scores: object, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        figure(labels, scores)


def test_contradictory_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="probabilities"):
        metrics.expected_calibration_error([0, 1], [0.5, 1.01])
    with pytest.raises(ConfigError, match="bins=0"):
        metrics.expected_calibration_error([0, 1], [0.5, 1], bins=0)
    with pytest.raises(DataError, match="label=2"):
        metrics.class_accuracy([0, 1], [0.5, 1], 2, 0.5)
    with pytest.raises(ConfigError, match="resamples=0"):
        metrics.bootstrap_interval(metrics.auroc, [0, 1], [0, 1], resamples=0)
    with pytest.raises(ConfigError, match=r"level=1\.5"):
        metrics.bootstrap_interval(metrics.auroc, [0, 1], [0, 1], level=1.5)


def test_boolean_labels_count_as_0_and_1() -> None:
    assert metrics.auroc(np.array([False, True]), [1, 2]) == 1


# -- bootstrap ------------------------------------------------------------------------------------------------


def test_resamples_keep_the_size_of_each_stratum_and_draw_evenly_within() -> None:
    strata = np.array([2, 0, 0, 2, 0, 7])
    drawn = np.array(list(metrics.resample_within(strata, 4000)))
    assert drawn.shape == (4000, 6)
    assert np.array_equal(np.sort(strata[drawn], axis=1), np.tile(np.sort(strata), (4000, 1)))
    shares = np.bincount(drawn.ravel(), minlength=6) / 4000  # how often an image is drawn: once on average
    assert shares == pytest.approx(np.ones(6), abs=0.06)
    assert len(np.unique(np.sort(drawn, axis=1), axis=0)) == math.comb(5, 3) * math.comb(3, 2)  # with replacement


def test_resampling_nothing_gives_nothing() -> None:
    assert [index.tolist() for index in metrics.resample_within([], 2)] == [[], []]
    assert all(math.isnan(bound) for bound in metrics.bootstrap_interval(metrics.auroc, [], []))


def test_the_interval_is_the_percentiles_of_the_resampled_figure() -> None:
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], [30, 20])
    s = rng.normal(y)
    values = [roc_auc_score(y[i], s[i]) for i in metrics.resample_within(y, 300, seed=5)]
    expected = np.percentile(values, [10, 90])
    assert metrics.bootstrap_interval(metrics.auroc, y, s, 300, 0.8, seed=5) == pytest.approx(expected, abs=1e-12)


def test_the_interval_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 40)
    s = rng.normal(y)
    intervals = [metrics.bootstrap_interval(metrics.auroc, y, s, 100, seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_a_resample_never_loses_a_class() -> None:
    def both(y: NDArray[np.int64], _: NDArray[np.float64]) -> float:
        assert sorted(y.tolist()) == [0, 0, 0, 1]
        return 0.0

    assert metrics.bootstrap_interval(both, [0, 1, 0, 0], [1, 2, 3, 4], 50) == (0, 0)


def test_intervals_pass_over_undefined_values() -> None:
    assert metrics.percentile_interval([math.nan, 1.0, 2.0, 3.0, math.nan], 0.5) == (1.5, 2.5)
    assert all(math.isnan(bound) for bound in metrics.percentile_interval([math.nan]))
    low, high = metrics.bootstrap_interval(metrics.auroc, [1, 1], [0.3, 0.4], 10)
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_interval_covers_the_true_auroc_at_about_its_level() -> None:
    # Scores N(0, 1) and N(1, 1): the true AUROC is Phi(1 / sqrt 2).
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 60)
    covered = 0
    for trial in range(200):
        low, high = metrics.bootstrap_interval(metrics.auroc, y, rng.normal(y), 150, 0.9, seed=trial)
        covered += low <= truth <= high
    # 0.9 of 200 is 180; three standard deviations are 13, and percentile intervals are a little narrow.
    assert 0.83 <= covered / 200 <= 0.96
