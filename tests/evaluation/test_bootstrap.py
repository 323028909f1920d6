"""The bootstrap: what it draws, whole groups of images, and how often its intervals hold the truth."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from clipmole import metrics
from clipmole.errors import ConfigError, DataError
from clipmole.evaluation.bootstrap import bootstrap_indices, bootstrap_interval, group_codes, percentile_interval


def test_resamples_keep_the_size_of_each_stratum_and_draw_evenly_within() -> None:
    strata = np.array([2, 0, 0, 2, 0, 7])
    drawn = np.array(list(bootstrap_indices(strata, 4000)))
    assert drawn.shape == (4000, 6)
    assert np.array_equal(np.sort(strata[drawn], axis=1), np.tile(np.sort(strata), (4000, 1)))
    shares = np.bincount(drawn.ravel(), minlength=6) / 4000  # how often an image is drawn: once on average
    assert shares == pytest.approx(np.ones(6), abs=0.06)
    assert len(np.unique(np.sort(drawn, axis=1), axis=0)) == math.comb(5, 3) * math.comb(3, 2)  # with replacement


def test_resampling_nothing_gives_nothing() -> None:
    assert [index.tolist() for index in bootstrap_indices([], 2)] == [[], []]
    assert all(math.isnan(bound) for bound in bootstrap_interval(metrics.auroc, [], []))


def test_the_interval_is_the_percentiles_of_the_resampled_figure() -> None:
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1], [30, 20])
    s = rng.normal(y)
    values = [roc_auc_score(y[i], s[i]) for i in bootstrap_indices(y, 300, seed=5)]
    expected = np.percentile(values, [10, 90])
    assert bootstrap_interval(metrics.auroc, y, s, 300, 0.8, seed=5) == pytest.approx(expected, abs=1e-12)


def test_the_interval_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 40)
    s = rng.normal(y)
    intervals = [bootstrap_interval(metrics.auroc, y, s, 100, seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_a_resample_never_loses_a_class() -> None:
    def both(y: NDArray[np.int64], _: NDArray[np.float64]) -> float:
        assert sorted(y.tolist()) == [0, 0, 0, 1]
        return 0.0

    assert bootstrap_interval(both, [0, 1, 0, 0], [1, 2, 3, 4], 50) == (0, 0)


def test_intervals_pass_over_undefined_values() -> None:
    assert percentile_interval([math.nan, 1.0, 2.0, 3.0, math.nan], 0.5) == (1.5, 2.5)
    assert all(math.isnan(bound) for bound in percentile_interval([math.nan]))
    low, high = bootstrap_interval(metrics.auroc, [1, 1], [0.3, 0.4], 10)
    assert math.isnan(low)
    assert math.isnan(high)


def test_the_interval_covers_the_true_auroc_at_about_its_level() -> None:
    # Scores N(0, 1) and N(1, 1): the true AUROC is Phi(1 / sqrt 2).
    truth = 0.5 * (1 + math.erf(0.5))
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 60)
    covered = 0
    for trial in range(200):
        low, high = bootstrap_interval(metrics.auroc, y, rng.normal(y), 150, 0.9, seed=trial)
        covered += low <= truth <= high
    # 0.9 of 200 is 180; three standard deviations are 13, and percentile intervals are a little narrow.
    assert 0.83 <= covered / 200 <= 0.96


def test_contradictory_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="resamples=0"):
        bootstrap_interval(metrics.auroc, [0, 1], [0, 1], resamples=0)
    with pytest.raises(ConfigError, match=r"level=1\.5"):
        bootstrap_interval(metrics.auroc, [0, 1], [0, 1], level=1.5)
    with pytest.raises(DataError, match="two vectors of one length"):
        bootstrap_interval(metrics.auroc, [0, 1], [0.1])
    with pytest.raises(DataError, match="2 images need as many groups"):
        next(bootstrap_indices([0, 1], 1, groups=["a"]))


# -- groups ---------------------------------------------------------------------------------------------------


def test_a_group_is_drawn_whole_or_not_at_all() -> None:
    strata = np.array([1, 0, 1, 1, 0, 1])
    groups = ["a", "", "b", "a", "", "b"]  # two of two images in class 1; each photograph its own
    draws = list(bootstrap_indices(strata, 2000, groups=groups))
    for index in draws:
        assert sorted(strata[index].tolist()) == [0, 0, 1, 1, 1, 1]
        times = np.bincount(index, minlength=6)
        assert times[0] == times[3]
        assert times[2] == times[5]
    times = np.mean([np.bincount(index, minlength=6) for index in draws], axis=0)
    assert times == pytest.approx(np.ones(6), abs=0.06)


def test_as_many_groups_are_drawn_as_there_are_whatever_their_size() -> None:
    groups = ["big"] * 8 + ["", "", "small", "small"]
    sizes = {len(index) for index in bootstrap_indices(np.ones(12), 500, groups=groups)}
    # Four groups of 8, 1, 1 and 2: four draws give anything from 4 to 32 images.
    assert min(sizes) == 4
    assert max(sizes) == 32


def test_strata_that_share_a_group_are_drawn_as_one() -> None:
    strata = [0, 1, 2, 1, 3]
    groups = ["x", "x", "y", "y", ""]  # 0 and 1 by x, 1 and 2 by y; 3 alone
    seen = set()
    for index in bootstrap_indices(strata, 300, groups=groups):
        times = np.bincount(index, minlength=5)
        assert times[0] == times[1]
        assert times[2] == times[3]
        assert times[0] + times[2] == 2
        assert times[4] == 1
        seen.add(int(times[0]))
    assert seen == {0, 1, 2}


def test_pairs_of_both_classes_stay_pairs() -> None:
    """A photograph and its generated counterpart: the difference of their scores has no variance to resample."""

    def gap(y: NDArray[np.int64], s: NDArray[np.float64]) -> float:
        return float(s[y == 1].mean() - s[y == 0].mean())

    base = np.random.default_rng(0).normal(size=20)
    y, s = np.tile([0, 1], 20), np.repeat(base, 2) + np.tile([0.0, 1.0], 20)
    groups = [f"scene {i // 2}" for i in range(40)]
    assert bootstrap_interval(gap, y, s, 100, groups=groups) == pytest.approx((1, 1), abs=1e-12)
    low, high = bootstrap_interval(gap, y, s, 100)
    assert high - low > 0.5


def test_without_groups_every_image_is_its_own() -> None:
    y = np.repeat([0, 1], [5, 7])
    plain, empty, single = (
        [index.tolist() for index in bootstrap_indices(y, 20, groups=groups)]
        for groups in (None, [""] * 12, [f"g{i}" for i in range(12)])
    )
    assert plain == empty == single
    assert group_codes(["", "a", "", "a"]).tolist() == [0, 1, 2, 1]


def test_the_interval_of_grouped_images_is_as_wide_as_their_number_of_groups_says() -> None:
    """Groups of five images of one score carry the information of one image, and 25 of them that of 25."""
    rng = np.random.default_rng(0)
    y, s = np.repeat([0, 1], 25), rng.normal(np.repeat([0, 1], 25))
    groups = [f"{i}" for i in np.repeat(np.arange(50), 5)]
    alone = bootstrap_interval(metrics.auroc, y, s, 400)
    grouped = bootstrap_interval(metrics.auroc, np.repeat(y, 5), np.repeat(s, 5), 400, groups=groups)
    naive = bootstrap_interval(metrics.auroc, np.repeat(y, 5), np.repeat(s, 5), 400)
    assert grouped == pytest.approx(alone, abs=1e-12)  # the same draws, five times each
    assert (naive[1] - naive[0]) == pytest.approx((alone[1] - alone[0]) / math.sqrt(5), rel=0.25)


def test_the_interval_of_correlated_images_covers_the_truth_where_the_naive_one_does_not() -> None:
    """30 scenes of 4 images each a class; scores are scene + image noise of the same size: the mean is covered."""

    def mean(_: NDArray[np.int64], s: NDArray[np.float64]) -> float:
        return float(s.mean())

    rng = np.random.default_rng(0)
    groups = [f"{i}" for i in np.repeat(np.arange(30), 4)]
    covered = {"grouped": 0, "naive": 0}
    for trial in range(150):
        s = np.repeat(rng.normal(size=30), 4) + rng.normal(size=120)
        for kind, given in (("grouped", groups), ("naive", None)):
            low, high = bootstrap_interval(mean, np.ones(120, dtype=int), s, 100, 0.9, seed=trial, groups=given)
            covered[kind] += low <= 0 <= high
    # Standard errors: sqrt(1/30 + 1/120) = 0.204 in truth, sqrt(2/120) = 0.129 if drawn one by one: 0.9 becomes 0.70.
    assert 0.82 <= covered["grouped"] / 150 <= 0.96
    assert covered["naive"] / 150 == pytest.approx(0.70, abs=0.09)


def test_one_group_alone_has_no_width_and_no_crash() -> None:
    half = partial(metrics.accuracy, threshold=0.5)
    assert bootstrap_interval(half, [1, 1], [0.2, 0.9], 10, groups=["a", "a"]) == (0.5, 0.5)


def test_sets_with_the_same_images_draw_them_together() -> None:
    """Photographs that two sets share are drawn alike in both, whatever stands beside them."""
    photographs = [f"laion/{i}" for i in range(30)]
    first = bootstrap_indices([0] * 30 + [1] * 10, 40, names=[*photographs, *(f"a/{i}" for i in range(10))])
    second = bootstrap_indices([0] * 30 + [1] * 20, 40, names=[*photographs, *(f"b/{i}" for i in range(20))])
    third = bootstrap_indices([0] * 30, 40, names=[f"imagenet/{i}" for i in range(30)])
    draws = [[index[index < 30].tolist() for index in each] for each in (first, second, third)]
    assert draws[0] == draws[1] != draws[2]
