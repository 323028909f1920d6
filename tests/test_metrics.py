"""Figures against formulas written another way and their named corner cases."""

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
from scipy.optimize import brentq  # type: ignore[import-untyped]
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    log_loss,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

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


# -- points of the curves -------------------------------------------------------------------------------------


@given(TIED)
def test_curve_points_equal_scikit_learns(pairs: list[tuple[int, float]]) -> None:
    y, s = [label for label, _ in pairs], [score for _, score in pairs]
    roc, precision_recall = metrics.roc_points(y, s), metrics.precision_recall_points(y, s)
    if len(set(y)) < 2:
        assert [len(vector) for vector in (*roc, *precision_recall)] == [0] * 4
        return
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    assert np.allclose(roc, (fpr, tpr), rtol=0, atol=1e-12)
    precision, recall, _ = precision_recall_curve(y, s)
    assert np.allclose(precision_recall, (recall[-2::-1], precision[-2::-1]), rtol=0, atol=1e-12)


@given(TIED)
def test_areas_under_the_points_are_the_ranking_figures(pairs: list[tuple[int, float]]) -> None:
    y, s = [label for label, _ in pairs], [score for _, score in pairs]
    if len(set(y)) < 2:
        return
    fpr, tpr = metrics.roc_points(y, s)
    assert np.trapezoid(tpr, fpr) == pytest.approx(metrics.auroc(y, s), abs=1e-12)
    recall, precision = metrics.precision_recall_points(y, s)
    assert np.diff(recall, prepend=0) @ precision == pytest.approx(metrics.average_precision(y, s), abs=1e-12)


# -- one cut of the ranking -----------------------------------------------------------------------------------


def loop_tpr(y: list[int], s: list[float], fpr: float) -> float:
    """Of all cuts "this score and above" that are allowed, the largest share of generated images."""
    real, ai = ([v for label, v in zip(y, s, strict=True) if label == own] for own in (0, 1))
    allowed = [cut for cut in {*s, math.inf} if sum(v >= cut for v in real) <= fpr * len(real) + 1e-9]
    return max(sum(v >= cut for v in ai) / len(ai) for cut in allowed)


@given(TIED, st.sampled_from([0.0, 0.01, 0.05, 0.25, 0.5, 0.99]))
def test_tpr_at_fpr_is_the_best_allowed_cut(pairs: list[tuple[int, float]], fpr: float) -> None:
    y, s = [label for label, _ in pairs], [score for _, score in pairs]
    found = metrics.tpr_at_fpr(y, s, fpr)
    assert math.isnan(found) if len(set(y)) < 2 else found == pytest.approx(loop_tpr(y, s, fpr), abs=1e-12)


@pytest.mark.parametrize("n", [20, 60, 100, 140, 200, 1000])
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.15])
def test_a_whole_number_of_photographs_is_allowed_to_the_last_one(n: int, fpr: float) -> None:
    # Photographs 0..n-1; a generated image between any two of them. k = fpr * n may be reached, not k + 1.
    s = np.concatenate([np.arange(n), np.arange(n) + 0.5])
    y = np.repeat([0, 1], n)
    allowed = int(fpr * n + 1e-9)
    assert metrics.tpr_at_fpr(y, s, fpr) == (allowed + 1) / n


def test_tpr_at_fpr_takes_a_tie_whole_or_not_at_all() -> None:
    y = [0] * 20 + [1] * 4
    assert metrics.tpr_at_fpr(y, [0.0] * 18 + [2.0, 2.0] + [1.0, 2.0, 2.0, 2.0], 0.05) == 0  # 2 of 20 in the top tie
    assert metrics.tpr_at_fpr(y, [0.0] * 18 + [2.0, 2.0] + [1.0, 2.0, 2.0, 3.0], 0.05) == 1 / 4
    assert metrics.tpr_at_fpr(y, [0.0] * 19 + [2.0] + [1.0, 2.0, 2.0, 2.0], 0.05) == 1  # 1.0 is above all other 19
    assert metrics.tpr_at_fpr(y, [0.0] * 24, 0.05) == 0
    assert metrics.tpr_at_fpr([0, 0, 1, 1], [1, 2, 3, 1.5], 0.01) == 0.5  # too few photographs: above all of them


@given(TIED)
def test_equal_error_rate_is_where_the_lines_between_roc_points_cross(pairs: list[tuple[int, float]]) -> None:
    y, s = [label for label, _ in pairs], [score for _, score in pairs]
    found = metrics.equal_error_rate(y, s)
    if len(set(y)) < 2:
        assert math.isnan(found)
        return
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    # t walks along the polyline: its corners are at 0, 1, 2, ...
    corner = np.arange(len(fpr))
    t = brentq(lambda t: np.interp(t, corner, fpr) + np.interp(t, corner, tpr) - 1, 0, corner[-1], xtol=1e-14)
    assert found == pytest.approx(np.interp(t, corner, fpr), abs=1e-12)
    assert found == pytest.approx(1 - np.interp(t, corner, tpr), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "eer", "oracle"),
    [
        ([1, 2, 3, 4], 0.0, 1.0),
        ([4, 3, 2, 1], 1.0, 0.5),
        ([1, 3, 2, 4], 0.5, 0.75),
        ([5, 5, 5, 5], 0.5, 0.5),
        ([1, 2, 2, 3], 0.25, 0.75),  # the tie's line runs from (0, 1/2) to (1/2, 1)
    ],
    ids=["perfect", "inverted", "one swap", "all tied", "a tie across"],
)
def test_equal_error_and_oracle_of_four_images(scores: list[float], eer: float, oracle: float) -> None:
    assert metrics.equal_error_rate([0, 0, 1, 1], scores) == pytest.approx(eer, abs=1e-15)
    assert metrics.oracle_accuracy([0, 0, 1, 1], scores) == pytest.approx(oracle, abs=1e-15)


@given(TIED)
def test_oracle_accuracy_is_the_best_of_all_thresholds(pairs: list[tuple[int, float]]) -> None:
    y, s = [label for label, _ in pairs], [score for _, score in pairs]
    if len(set(y)) < 2:
        assert math.isnan(metrics.oracle_accuracy(y, s))
        return
    best = max(accuracy_score(y, np.array(s) > threshold) for threshold in [-math.inf, *s])
    assert metrics.oracle_accuracy(y, s) == pytest.approx(best, abs=1e-12)


def test_the_oracle_is_never_below_the_larger_class_or_any_fixed_threshold() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [70, 30])
    s = rng.normal(0.3 * y)
    assert metrics.oracle_accuracy(y, s) >= 0.7
    assert metrics.oracle_accuracy(y, s) >= max(metrics.accuracy(y, s, t) for t in np.linspace(-3, 3, 50))


# -- verdicts and probabilities -------------------------------------------------------------------------------

CHANCES = st.lists(
    st.tuples(st.integers(0, 1), st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.floats(0, 1))),
    min_size=1,
    max_size=40,
)


@given(CHANCES, st.floats(0, 0.5), st.floats(0.5, 1))
def test_selective_accuracy_counts_verdicts_alone(pairs: list[tuple[int, float]], low: float, high: float) -> None:
    given_verdicts = [(label, p > high) for label, p in pairs if p > high or p < low]
    found = metrics.selective_accuracy(*zip(*pairs, strict=True), low=low, high=high)  # type: ignore[misc]
    if not given_verdicts:
        assert math.isnan(found)
    else:
        right = sum(label == verdict for label, verdict in given_verdicts)
        assert found == pytest.approx(right / len(given_verdicts), abs=1e-12)


def test_selective_accuracy_by_hand() -> None:
    y, p = [0, 0, 1, 1, 1], [0.1, 0.9, 0.3, 0.7, 0.8]
    assert metrics.selective_accuracy(y, p, 0.3, 0.7) == 2 / 3  # 0.3 and 0.7 are uncertain
    assert metrics.selective_accuracy(y, p, 0.5, 0.5) == 3 / 5 == metrics.accuracy(y, p, 0.5)
    assert math.isnan(metrics.selective_accuracy(y, p, 0.0, 1.0))
    assert metrics.selective_accuracy([1, 1], [0.1, 0.9], 0.3, 0.7) == 0.5  # one class is enough


@given(CHANCES)
def test_risk_coverage_is_the_accuracy_of_each_most_confident_share(pairs: list[tuple[int, float]]) -> None:
    y, p = [label for label, _ in pairs], [chance for _, chance in pairs]
    expected = []
    for confidence in sorted({max(c, 1 - c) for c in p}, reverse=True):
        taken = [(label, c) for label, c in pairs if max(c, 1 - c) >= confidence]
        expected.append((len(taken) / len(y), sum((c > 0.5) == label for label, c in taken) / len(taken)))
    coverage, accuracy = metrics.risk_coverage(y, p)
    assert np.allclose(np.transpose([coverage, accuracy]), expected, rtol=0, atol=1e-12)
    assert coverage[-1] == 1
    assert accuracy[-1] == pytest.approx(metrics.accuracy(y, p, 0.5), abs=1e-12)


def test_risk_coverage_by_hand() -> None:
    # Confidences .9 right, .8 wrong, .8 right (0.2 and 0.8 enter together), .6 wrong
    coverage, accuracy = metrics.risk_coverage([1, 1, 1, 0], [0.9, 0.2, 0.8, 0.6])
    assert coverage.tolist() == [1 / 4, 3 / 4, 1]
    assert accuracy.tolist() == [1, 2 / 3, 1 / 2]
    assert [len(vector) for vector in metrics.risk_coverage([], [])] == [0, 0]
    assert [v.tolist() for v in metrics.risk_coverage([0, 1], [0.5, 0.5])] == [[1], [0.5]]  # all the same


@given(CHANCES)
def test_likelihood_equals_scikit_learns(pairs: list[tuple[int, float]]) -> None:
    y, p = [label for label, _ in pairs], [chance for _, chance in pairs]
    expected = log_loss(y, p, labels=[0, 1])
    assert metrics.negative_log_likelihood(y, p) == pytest.approx(expected, abs=1e-12)


def test_likelihood_at_its_limits() -> None:
    assert metrics.negative_log_likelihood([0, 1], [0.5, 0.5]) == pytest.approx(math.log(2), abs=1e-15)
    assert metrics.negative_log_likelihood([1], [0.2]) == pytest.approx(-math.log(0.2), abs=1e-15)
    assert metrics.negative_log_likelihood([0, 1], [0, 1]) == pytest.approx(0, abs=1e-15)
    assert metrics.negative_log_likelihood([0, 1], [1, 0]) == pytest.approx(52 * math.log(2), abs=1e-12)  # e = 2^-52


@given(CHANCES, st.integers(1, 12))
def test_reliability_bins_by_a_loop_and_their_sum_is_the_calibration_error(
    pairs: list[tuple[int, float]], bins: int
) -> None:
    y, p = [label for label, _ in pairs], [chance for _, chance in pairs]
    diagram = metrics.reliability_bins(y, p, bins)
    assert diagram.images.sum() == len(y)
    error = 0.0
    for b in range(bins):
        own = [(label, c) for label, c in pairs if min(int(c * bins), bins - 1) == b]
        assert diagram.images[b] == len(own)
        if not own:
            assert math.isnan(diagram.mean_probability[b])
            assert math.isnan(diagram.share_generated[b])
            continue
        mean, share = sum(c for _, c in own) / len(own), sum(label for label, _ in own) / len(own)
        assert diagram.mean_probability[b] == pytest.approx(mean, abs=1e-12)
        assert diagram.share_generated[b] == pytest.approx(share, abs=1e-12)
        error += len(own) / len(y) * abs(mean - share)
    assert metrics.expected_calibration_error(y, p, bins) == pytest.approx(error, abs=1e-12)


def test_reliability_bins_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(5000) ** 2
    y = (rng.random(5000) < p).astype(int)
    diagram = metrics.reliability_bins(y, p)
    share, mean = calibration_curve(y, p, n_bins=10)
    assert np.allclose(diagram.share_generated, share, rtol=0, atol=1e-12)
    assert np.allclose(diagram.mean_probability, mean, rtol=0, atol=1e-12)


def test_an_empty_reliability_diagram_keeps_its_bins() -> None:
    diagram = metrics.reliability_bins([], [], 4)
    assert diagram.images.tolist() == [0] * 4
    assert np.isnan(diagram.mean_probability).all()
    assert np.isnan(diagram.share_generated).all()


# -- corner cases of all of them ------------------------------------------------------------------------------

FIGURES: list[Callable[..., float]] = [
    metrics.average_precision,
    metrics.auroc,
    metrics.expected_calibration_error,
    metrics.equal_error_rate,
    metrics.oracle_accuracy,
    metrics.negative_log_likelihood,
    lambda y, s: metrics.tpr_at_fpr(y, s, 0.05),
    lambda y, s: metrics.selective_accuracy(y, s, 0.3, 0.7),
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
    assert math.isnan(metrics.tpr_at_fpr([1, 1], [0.2, 0.9], 0.05))
    assert math.isnan(metrics.equal_error_rate([0, 0], [0.2, 0.9]))
    assert math.isnan(metrics.oracle_accuracy([1, 1], [0.2, 0.9]))
    assert metrics.negative_log_likelihood([1, 1], [0.2, 0.9]) == pytest.approx(-math.log(0.2 * 0.9) / 2)


CURVES: list[Callable[..., tuple[NDArray[np.float64], ...]]] = [
    metrics.roc_points,
    metrics.precision_recall_points,
    metrics.risk_coverage,
    metrics.reliability_bins,
]


@pytest.mark.parametrize("figure", [*FIGURES, *CURVES])
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
    for figure in (metrics.negative_log_likelihood, metrics.risk_coverage, metrics.reliability_bins):
        with pytest.raises(DataError, match="probabilities"):
            figure([0, 1], [-0.01, 0.5])
    with pytest.raises(DataError, match="probabilities"):
        metrics.selective_accuracy([0, 1], [-3.0, 5.0], 0.3, 0.7)
    with pytest.raises(ConfigError, match=r"low=0\.7, high=0\.3"):
        metrics.selective_accuracy([0, 1], [0.1, 0.9], 0.7, 0.3)
    for fpr in (-0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="fpr="):
            metrics.tpr_at_fpr([0, 1], [0.1, 0.9], fpr)
    with pytest.raises(ConfigError, match="bins=0"):
        metrics.reliability_bins([0, 1], [0.5, 1], bins=0)
    with pytest.raises(ConfigError, match="bins=0"):
        metrics.expected_calibration_error([0, 1], [0.5, 1], bins=0)
    with pytest.raises(DataError, match="label=2"):
        metrics.class_accuracy([0, 1], [0.5, 1], 2, 0.5)


def test_boolean_labels_count_as_0_and_1() -> None:
    assert metrics.auroc(np.array([False, True]), [1, 2]) == 1
