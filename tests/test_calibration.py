"""The sigmoid's parameters, the thresholds' guarantee, and verdicts that survive rounding, saving and extremes."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import minimize, minimize_scalar  # type: ignore[import-untyped]
from scipy.stats import beta, norm  # type: ignore[import-untyped]

from clipmole.calibration import (
    Calibration,
    CalibrationMethod,
    FalseAlarms,
    fit_calibration,
    fit_platt,
    fit_temperature,
    images_needed,
    leave_one_source_out,
    move_to_photographs,
    rate_bound,
    sigmoid,
    source_weights,
    upper_threshold,
    upper_threshold_by_source,
    weighted_quantile,
)
from clipmole.errors import ConfigError, DataError
from clipmole.records import Thresholds, Verdict

FIXED = Calibration(
    slope=1.7,
    intercept=-0.3,
    thresholds=Thresholds(real=0.25, generated=0.8),
    max_false_alarm=0.05,
    max_miss=0.1,
    n_real=50,
    n_generated=50,
    variants=("as stored",),
)


def simulated(seed: int, real: int = 64, ai: int = 64, distance: float = 2.0) -> tuple[NDArray[np.float64], list[int]]:
    """Logits N(0, 1) of photographs and N(distance, 1) of generated images, as float32 networks give them."""
    rng = np.random.default_rng(seed)
    labels = [0] * real + [1] * ai
    return rng.normal(distance * np.array(labels)).astype(np.float32).astype(np.float64), labels


def verdicts(calibration: Calibration, logits: NDArray[np.float64]) -> list[Verdict]:
    return [calibration.verdict(logit) for logit in logits.tolist()]


# -- probability ----------------------------------------------------------------------------------------------


def test_probability_is_the_sigmoid() -> None:
    for logit in (-3.0, -0.1, 0.0, 0.2, 4.0):
        expected = 1 / (1 + math.exp(-(1.7 * logit - 0.3)))
        assert FIXED.probability(logit) == pytest.approx(expected, rel=1e-14)
    assert sigmoid(0.0) == 0.5
    assert sigmoid(2.0) + sigmoid(-2.0) == pytest.approx(1, abs=1e-15)


@given(st.lists(st.one_of(st.floats(-50, 50), st.floats(allow_nan=False)), min_size=1, max_size=70))
def test_one_logit_and_many_give_the_same_bits_and_verdicts(logits: list[float]) -> None:
    # Of any length and stride: vectorised exponentials may round by their place in the array.
    wide = np.full((len(logits), 3), 0.5)
    wide[:, 1] = logits
    single = [FIXED.probability(logit) for logit in logits]
    assert FIXED.probabilities(logits).tolist() == single
    assert FIXED.probabilities(wide[:, 1]).tolist() == single
    assert FIXED.probabilities(wide)[:, 1].tolist() == single
    for logit, probability in zip(logits, single, strict=True):
        verdict = FIXED.verdict(logit)
        assert (verdict is Verdict.AI_GENERATED) == (probability > FIXED.thresholds.generated)
        assert (verdict is Verdict.REAL) == (probability < FIXED.thresholds.real)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_probability_rises_with_the_logit_and_stays_in_its_range(a: float, b: float) -> None:
    low, high = FIXED.probability(min(a, b)), FIXED.probability(max(a, b))
    assert 0 <= low <= high <= 1


def test_neighbouring_floats_never_fall() -> None:
    for start in (-700.0, -36.0, -3.1, -1e-3, 0.7, 5.2, 30.0):
        logits = start + np.arange(2000) * np.spacing(abs(start))
        assert (np.diff(FIXED.probabilities(logits)) >= 0).all()


def test_extreme_logits_neither_overflow_nor_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logits = np.array([-1e308, -1e4, 1e4, 1e308, math.inf, -math.inf])
        assert FIXED.probabilities(logits).tolist() == [0, 0, 1, 1, 1, 0]
        assert FIXED.verdict(1e4) is Verdict.AI_GENERATED
        assert FIXED.verdict(-1e4) is Verdict.REAL
        assert math.isnan(FIXED.probability(math.nan))
        assert FIXED.verdict(math.nan) is Verdict.UNCERTAIN


def test_probabilities_keep_the_shape() -> None:
    assert FIXED.probabilities([]).shape == (0,)
    assert FIXED.probabilities(np.zeros((2, 3), np.float32)).shape == (2, 3)
    assert FIXED.probabilities(0.0).shape == ()


# -- Platt ----------------------------------------------------------------------------------------------------


def test_platt_recovers_the_sigmoid_that_drew_the_labels() -> None:
    # N(-1, 1) against N(1.5, 1) at equal priors: the log-odds are 2.5 x - 0.625.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40_000)
    slope, intercept = fit_platt(rng.normal(2.5 * labels - 1), labels)
    assert slope == pytest.approx(2.5, abs=0.06)  # three standard errors
    assert intercept == pytest.approx(-0.625, abs=0.06)


def test_platt_means_equal_priors_however_many_there_are_of_each_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [90_000, 10_000])
    slope, intercept = fit_platt(rng.normal(2.5 * labels - 1), labels)
    assert slope == pytest.approx(2.5, abs=0.1)
    assert intercept == pytest.approx(-0.625, abs=0.1)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_platt_minimises_his_cross_entropy_at_any_scale_of_the_logits(scale: float, shift: float) -> None:
    logits, labels = simulated(1, real=40, ai=25)
    y = np.array(labels)
    target = np.where(y == 1, 26 / 27, 1 / 42)
    weight = np.where(y == 1, 1 / 25, 1 / 40)

    def loss(parameters: NDArray[np.float64]) -> float:
        z = parameters[0] * logits + parameters[1]
        return float((weight * (np.logaddexp(0, z) - target * z)).sum())

    expected = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14}).x
    slope, intercept = fit_platt((logits + shift) * scale, y)
    assert slope * scale == pytest.approx(expected[0], abs=1e-4)
    assert intercept + slope * scale * shift == pytest.approx(expected[1], abs=1e-3)


# -- temperature ----------------------------------------------------------------------------------------------


def test_temperature_recovers_a_slope_and_has_no_intercept() -> None:
    # N(-1, 1) against N(1, 1): the log-odds are 2 x, even at x = 0.
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60_000, 20_000])
    slope, intercept = fit_temperature(rng.normal(2.0 * labels - 1), labels)
    assert slope == pytest.approx(2.0, abs=0.05)
    assert intercept == 0


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_temperature_minimises_the_cross_entropy_at_any_scale_of_the_logits(scale: float) -> None:
    logits, labels = simulated(1, real=40, ai=25, distance=1.5)
    y = np.array(labels)
    target = np.where(y == 1, 26 / 27, 1 / 42)
    weight = np.where(y == 1, 1 / 25, 1 / 40)

    def loss(slope: float) -> float:
        return float((weight * (np.logaddexp(0, slope * logits) - target * slope * logits)).sum())

    expected = minimize_scalar(loss, (0.1, 1.0), tol=1e-12).x
    assert fit_temperature(logits * scale, y)[0] * scale == pytest.approx(expected, abs=1e-6)


def test_temperature_keeps_the_middle_and_platt_moves_it() -> None:
    logits, labels = simulated(0, 400, 400)  # N(0, 1) against N(2, 1): even odds at a logit of 1
    platt, temperature = (
        fit_calibration({"as stored": logits}, labels, method=method) for method in ("platt", "temperature")
    )
    assert (platt.method, temperature.method) == ("platt", "temperature")
    assert platt.probability(1.0) == pytest.approx(0.5, abs=0.05)
    assert temperature.probability(0.0) == 0.5
    assert temperature.intercept == 0
    # The thresholds are places among the logits, which no rising function of them moves.
    assert verdicts(platt, logits) == verdicts(temperature, logits)


def test_temperature_is_finite_where_the_classes_are_apart_and_refused_where_it_would_turn_them_round() -> None:
    apart = fit_calibration({"as stored": [-3.0] * 30 + [3.0] * 30}, [0] * 30 + [1] * 30, method="temperature")
    assert apart.probability(3.0) == pytest.approx(31 / 32, abs=1e-6)  # the smoothed target
    for logits in ([0.0, 0.0], [3.0, -3.0]):
        with pytest.raises(DataError, match="do not score higher"):
            fit_calibration({"as stored": logits}, [0, 1], method="temperature")


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="method=isotonic: must be one of platt, temperature"):
        fit_calibration({"as stored": [0.0, 1.0]}, [0, 1], method="isotonic")  # type: ignore[arg-type]


# -- thresholds -----------------------------------------------------------------------------------------------


def test_upper_threshold_is_the_conformal_quantile() -> None:
    scores = list(range(1, 100))  # 99 scores: k = 100 (1 - rate)
    assert upper_threshold(scores, 0.05) == 95
    assert upper_threshold(scores, 0.10) == 90
    assert upper_threshold(scores[::-1], 0.051) == 95  # ceil(94.9), whatever the order
    assert upper_threshold(scores, 0.01) == 99
    assert upper_threshold(scores, 0.009) == math.inf


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (9, 0.1), (99, 0.01), (999, 0.001)])
def test_upper_threshold_needs_one_over_the_rate_less_one_scores(n: int, rate: float) -> None:
    assert upper_threshold(range(n), rate) == n - 1
    assert upper_threshold(range(n - 1), rate) == math.inf
    assert upper_threshold([], rate) == math.inf


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5, math.nan])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate"):
        upper_threshold([1.0, 2.0], rate)
    with pytest.raises(ConfigError, match="rate"):
        fit_calibration({"as stored": [0.0, 1.0]}, [0, 1], max_false_alarm=rate)
    with pytest.raises(ConfigError, match="rate"):
        fit_calibration({"as stored": [0.0, 1.0]}, [0, 1], max_miss=rate)


@pytest.mark.parametrize("n", [19, 64, 128])
def test_fresh_photographs_raise_a_false_alarm_at_most_at_the_rate(n: int) -> None:
    # Of continuous scores the conformal rate is exactly 1 - ceil(0.95 (n + 1)) / (n + 1).
    rng = np.random.default_rng(n)
    uniform = rng.random((20_000, n))  # for a uniform score the rate above a threshold t is 1 - t
    rates = [1 - upper_threshold(row, 0.05) for row in uniform]
    exact = 1 - math.ceil(0.95 * (n + 1) - 1e-9) / (n + 1)
    assert exact <= 0.05 + 1e-12
    assert np.mean(rates) == pytest.approx(exact, abs=4 * float(np.std(rates)) / math.sqrt(len(rates)))


@pytest.mark.parametrize("method", ["platt", "temperature"])
@pytest.mark.parametrize(("n", "false_alarm", "miss"), [(19, 0.05, 0.10), (64, 0.05, 0.10), (100, 0.2, 0.01)])
def test_the_band_has_its_stated_coverage_on_held_out_images(
    method: CalibrationMethod, n: int, false_alarm: float, miss: float
) -> None:
    # The classes overlap, so that the thresholds do not cross: then each rate is exactly (n + 1 - k) / (n + 1),
    # over draws of calibration and held-out images together. The unlike shapes are not what Platt assumes.
    rates = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        real, ai = rng.normal(0, 1, n + 200), rng.laplace(1.5, 0.7, n + 200)
        fitted = np.concatenate([real[:n], ai[:n]])
        calibration = fit_calibration({"as stored": fitted}, [0] * n + [1] * n, false_alarm, miss, method)
        alarms = calibration.probabilities(real[n:]) > calibration.thresholds.generated
        misses = calibration.probabilities(ai[n:]) < calibration.thresholds.real
        rates.append((alarms.mean(), misses.mean()))
    for found, rate in zip(np.transpose(rates), (false_alarm, miss), strict=True):
        if n < 1 / rate - 1:
            assert not found.any()  # too few images: no verdict
            continue
        exact = 1 - math.ceil((n + 1) * (1 - rate) - 1e-9) / (n + 1)
        assert exact <= rate + 1e-12
        assert found.mean() == pytest.approx(exact, abs=4 * found.std() / math.sqrt(len(found)))


def test_the_bound_on_a_rate_is_the_beta_quantile() -> None:
    for n in (19, 20, 64, 100, 1000):
        for rate in (0.05, 0.1, 0.31):
            for confidence in (0.05, 0.5, 0.95, 0.999):
                k = math.ceil((n + 1) * (1 - rate) - 1e-9)
                expected = beta.ppf(confidence, n + 1 - k, k)
                assert rate_bound(n, rate, confidence) == pytest.approx(expected, abs=1e-12)
    assert rate_bound(19, 0.05) == pytest.approx(1 - 0.05 ** (1 / 19), abs=1e-12)  # k = 19: the largest of 19
    assert rate_bound(18, 0.05) == 0  # no threshold, no error
    with pytest.raises(ConfigError, match="confidence=95"):
        rate_bound(100, 0.05, 95)


@pytest.mark.parametrize("n", [19, 100])
def test_nineteen_of_twenty_calibration_sets_keep_to_the_bound(n: int) -> None:
    rng = np.random.default_rng(n)
    thresholds = np.array([upper_threshold(rng.normal(size=n), 0.05) for _ in range(4000)])
    kept = np.mean(norm.sf(thresholds) <= rate_bound(n, 0.05))
    assert kept == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_the_fewest_images_are_those_that_give_a_threshold() -> None:
    assert [images_needed(rate) for rate in (0.05, 0.1, 0.01, 0.001, 0.3, 0.5, 0.9)] == [19, 9, 99, 999, 3, 1, 1]
    for rate in [1 / x for x in range(2, 300)] + np.linspace(0.01, 0.99, 300).tolist():
        needed = images_needed(rate)
        assert upper_threshold(np.zeros(needed), rate) == 0
        assert needed == 1 or upper_threshold(np.zeros(needed - 1), rate) == math.inf
    with pytest.raises(ConfigError, match=r"rate=1\.0"):
        images_needed(1.0)


def test_fitted_verdicts_keep_both_rates_on_fresh_images() -> None:
    false_alarms, misses = [], []
    for seed in range(150):
        logits, labels = simulated(seed, distance=1.5)
        calibration = fit_calibration({"as stored": logits}, labels)
        fresh, fresh_labels = simulated(10_000 + seed, 300, 300, distance=1.5)
        p, y = calibration.probabilities(fresh), np.array(fresh_labels)
        false_alarms.append((p[y == 0] > calibration.thresholds.generated).mean())
        misses.append((p[y == 1] < calibration.thresholds.real).mean())
    for rates, allowed in ((false_alarms, 0.05), (misses, 0.10)):
        assert np.mean(rates) <= allowed + 3 * np.std(rates) / math.sqrt(len(rates))
        assert np.mean(rates) >= allowed / 2  # cautious, not useless


@pytest.mark.parametrize("seed", range(20))
def test_no_variant_of_the_calibration_images_breaks_a_rate(seed: int) -> None:
    stored, labels = simulated(seed)
    equalised = stored + np.random.default_rng(seed).normal(0.5, 0.5, len(stored))
    calibration = fit_calibration({"as stored": stored, "equalised": equalised}, labels)
    y = np.array(labels)
    alarms, misses = [], []
    for logits in (stored, equalised):
        given_verdicts = np.array(verdicts(calibration, logits))
        alarms.append((given_verdicts[y == 0] == Verdict.AI_GENERATED).mean())
        misses.append((given_verdicts[y == 1] == Verdict.REAL).mean())
    assert max(alarms) <= 0.05
    assert max(misses) <= 0.10
    assert (calibration.n_real, calibration.n_generated) == (64, 64)
    assert calibration.variants == ("as stored", "equalised")
    # The more cautious variant binds: k = 62 of 64 photographs, 59 of 64 generated images.
    assert max(alarms) == 2 / 64
    assert max(misses) == 5 / 64


def test_too_few_images_give_thresholds_that_nothing_passes() -> None:
    calibration = fit_calibration({"as stored": [0.0] * 18 + [5.0] * 8}, [0] * 18 + [1] * 8)
    assert calibration.thresholds == Thresholds(real=0, generated=1)
    assert {calibration.verdict(logit) for logit in (-1e4, -5.0, 0.0, 5.0, 1e4)} == {Verdict.UNCERTAIN}
    enough_photographs = fit_calibration({"as stored": [0.0] * 19 + [5.0] * 8}, [0] * 19 + [1] * 8)
    assert enough_photographs.thresholds.real == 0
    assert enough_photographs.verdict(6.0) is Verdict.AI_GENERATED
    assert enough_photographs.verdict(-1e4) is Verdict.UNCERTAIN


def test_separated_classes_leave_an_uncertain_band_between_them() -> None:
    real, ai = np.linspace(-6, -4, 64), np.linspace(4, 6, 64)
    calibration = fit_calibration({"as stored": np.concatenate([real, ai])}, [0] * 64 + [1] * 64)
    assert calibration.verdict(-6) is Verdict.REAL
    assert calibration.verdict(6) is Verdict.AI_GENERATED
    assert {calibration.verdict(logit) for logit in (-4.0, -2.0, 0.0, 2.0, 4.0)} == {Verdict.UNCERTAIN}
    assert calibration.thresholds.real < 0.5 < calibration.thresholds.generated


def test_an_image_at_a_threshold_stays_uncertain_whatever_its_last_digits() -> None:
    for seed in range(50):
        logits, labels = simulated(seed)
        calibration = fit_calibration({"as stored": logits}, labels)
        bounds = (
            upper_threshold(logits[:64], 0.05),  # of the photographs
            -upper_threshold(-logits[64:], 0.10),  # of the generated images
        )
        loaded = Calibration.model_validate_json(calibration.model_dump_json(indent=2))
        for bound in bounds:
            # Another batch, machine or number of crops changes a float32 logit by a few of its last digits.
            for noise in (-2e-6, 0.0, 2e-6):
                assert calibration.verdict(bound + noise) is Verdict.UNCERTAIN
                assert loaded.verdict(float(np.float32(bound + noise))) is Verdict.UNCERTAIN
    # And the clearance is no more than that: a thousandth beyond it the verdict falls.
    high = max(bounds)
    assert calibration.verdict(high + 1e-3) is Verdict.AI_GENERATED


def test_tied_logits_are_calibrated() -> None:
    calibration = fit_calibration({"as stored": [0.0] * 60 + [1.0] * 60}, [0] * 60 + [1] * 60)
    assert calibration.verdict(0.0) is calibration.verdict(1.0) is Verdict.UNCERTAIN
    assert calibration.probability(1.0) == pytest.approx(61 / 62, abs=1e-6)  # Platt's smoothed target


def test_extreme_logits_are_calibrated() -> None:
    logits, labels = simulated(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = fit_calibration({"as stored": (logits - 1) * 1e4}, labels)
    usual = fit_calibration({"as stored": logits - 1}, labels)
    assert wide.slope * 1e4 == pytest.approx(usual.slope, rel=1e-4)
    assert wide.thresholds.generated == pytest.approx(usual.thresholds.generated, abs=1e-4)
    assert verdicts(wide, (logits - 1) * 1e4) == verdicts(usual, logits - 1)


# -- photographs alone ----------------------------------------------------------------------------------------


def test_photographs_alone_move_one_threshold_and_nothing_else() -> None:
    logits = np.linspace(-4, 1, 99)
    moved = move_to_photographs(FIXED, logits, 0.10)
    bound = float(logits[89])  # the 90th of 99 in order
    assert moved.thresholds.generated == pytest.approx(sigmoid(1.7 * bound - 0.3), abs=1e-4)
    assert moved.verdict(bound) is Verdict.UNCERTAIN
    assert moved.verdict(float(logits[90])) is Verdict.AI_GENERATED
    assert moved.own_photographs == 99
    assert moved.max_false_alarm == 0.10
    kept = {"slope", "intercept", "max_miss", "real", "ai", "variants", "method"}
    assert moved.model_dump(include=kept) == FIXED.model_dump(include=kept)
    assert moved.thresholds.real == FIXED.thresholds.real
    assert FIXED.own_photographs == 0
    assert Calibration.model_validate_json(moved.model_dump_json(indent=2)) == moved
    again = move_to_photographs(moved, logits + 1, 0.05)  # later ones replace earlier ones
    assert again == move_to_photographs(FIXED, logits + 1, 0.05)


def test_photographs_that_all_look_real_leave_the_thresholds_in_order() -> None:
    moved = move_to_photographs(FIXED, np.full(50, -20.0))
    assert moved.thresholds == Thresholds(real=0.25, generated=0.25)
    assert moved.verdict(-20) is Verdict.REAL


def test_photographs_of_another_source_keep_the_rate_that_the_first_fit_breaks() -> None:
    # A user's camera: its photographs score 1 higher than those of the first calibration.
    fitted = fit_calibration({"as stored": simulated(0, 500, 500)[0]}, [0] * 500 + [1] * 500)
    before, after = [], []
    for seed in range(200):
        own = np.random.default_rng(seed).normal(1, 1, 300)
        moved = move_to_photographs(fitted, own[:100])
        before.append((fitted.probabilities(own[100:]) > fitted.thresholds.generated).mean())
        after.append((moved.probabilities(own[100:]) > moved.thresholds.generated).mean())
    exact = 1 - math.ceil(101 * 0.95) / 101
    assert np.mean(before) > 0.15
    assert np.mean(after) == pytest.approx(exact, abs=4 * float(np.std(after)) / math.sqrt(200))
    assert np.mean(np.array(after) <= rate_bound(100, 0.05)) > 0.85  # 95 % of draws, and 200 images to see it by


@pytest.mark.parametrize(("count", "rate", "needed"), [(18, 0.05, 19), (0, 0.05, 19), (98, 0.01, 99)])
def test_too_few_photographs_are_refused_with_the_number_needed(count: int, rate: float, needed: int) -> None:
    with pytest.raises(
        DataError, match=f"{count} photographs cannot bound a share of {rate}: at least {needed} are needed;"
    ):
        move_to_photographs(FIXED, np.zeros(count), rate)
    assert move_to_photographs(FIXED, np.zeros(needed), rate).own_photographs == needed


def test_photographs_without_a_finite_logit_are_refused() -> None:
    with pytest.raises(DataError, match="one finite logit for each photograph"):
        move_to_photographs(FIXED, [0.0] * 50 + [math.nan])
    with pytest.raises(ConfigError, match="rate=5"):
        move_to_photographs(FIXED, [0.0] * 50, 5)


# -- refusals and storage -------------------------------------------------------------------------------------


def test_a_file_from_before_there_were_methods_is_read() -> None:
    text = (
        '{"slope": 1.7, "intercept": -0.3, "thresholds": {"real": 0.25, "ai": 0.8}, "max_false_alarm": 0.05, '
        '"max_miss": 0.1, "real": 50, "ai": 50, "variants": ["as stored"]}'
    )
    assert Calibration.model_validate_json(text) == FIXED
    assert (FIXED.method, FIXED.own_photographs) == ("platt", 0)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        ({}, [0, 1], "both photographs and AI-generated"),
        ({"as stored": [1.0, 2.0]}, [1, 1], "both photographs and AI-generated"),
        ({"as stored": [1.0, 2.0]}, [0, 0], "both photographs and AI-generated"),
        ({"as stored": []}, [], "both photographs and AI-generated"),
        ({"as stored": [1.0, 2.0, 3.0]}, [0, 0, 2], "labels are 1"),
        ({"as stored": [1.0, 2.0]}, [0.2, 1], "labels are 1"),
        ({"equalised": [1.0, math.nan]}, [0, 1], "equalised: needs one finite logit for each of the 2"),
        ({"as stored": [1.0, 2.0], "equalised": [1.0, math.inf]}, [0, 1], "equalised: needs one finite"),
        ({"as stored": [1.0, 2.0, 3.0]}, [0, 1], "as stored: needs one finite logit"),
        ({"as stored": [2.0, 1.0]}, [0, 1], "do not score higher"),
        ({"as stored": [1.0, 1.0]}, [0, 1], "do not score higher"),
        ({"as stored": [1.0, 1.0 + 1e-9]}, [0, 1], "differ too little"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(logits: dict[str, list[float]], labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_calibration(logits, labels)  # type: ignore[arg-type]


def test_scores_that_fall_with_the_label_are_refused() -> None:
    logits, labels = simulated(0)
    with pytest.raises(DataError, match="nothing to calibrate"):
        fit_calibration({"as stored": -logits}, labels)


@given(
    slope=st.floats(1e-6, 1e6),
    intercept=st.floats(-1e6, 1e6),
    real=st.floats(0, 0.5),
    ai=st.floats(0.5, 1),
)
def test_json_keeps_every_bit(slope: float, intercept: float, real: float, ai: float) -> None:
    thresholds = Thresholds(real=real, generated=ai)
    calibration = FIXED.model_copy(update={"slope": slope, "intercept": intercept, "thresholds": thresholds})
    assert Calibration.model_validate_json(calibration.model_dump_json()) == calibration


def test_verdicts_survive_saving_for_images_next_to_the_thresholds() -> None:
    logits, labels = simulated(4)
    calibration = fit_calibration({"as stored": logits}, labels)
    loaded = Calibration.model_validate_json(calibration.model_dump_json(indent=2))
    edges = [
        (math.log(p / (1 - p)) - calibration.intercept) / calibration.slope
        for p in (calibration.thresholds.real, calibration.thresholds.generated)
    ]
    near = np.concatenate([edge + np.arange(-300, 300) * np.spacing(edge) for edge in edges])
    probe = np.concatenate([logits, near])
    assert np.array_equal(loaded.probabilities(probe), calibration.probabilities(probe))
    assert verdicts(loaded, probe) == verdicts(calibration, probe)
    assert set(verdicts(calibration, near)) == {Verdict.REAL, Verdict.UNCERTAIN, Verdict.AI_GENERATED}


@pytest.mark.parametrize(
    "change",
    [
        {"slope": 0.0},
        {"slope": -1.0},
        {"slope": math.inf},
        {"slope": 1e308},
        {"intercept": -1e308},
        {"intercept": math.nan},
        {"thresholds": {"real": 0.8, "ai": 0.2}},
        {"thresholds": {"real": 0.2, "ai": 1.2}},
        {"max_false_alarm": 0.0},
        {"real": 0},
        {"temperature": 1.0},
        {"method": "isotonic"},
        {"own_photographs": -1},
    ],
)
def test_a_calibration_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        Calibration.model_validate(FIXED.model_dump() | change)


def test_a_temperature_with_an_intercept_is_refused() -> None:
    with pytest.raises(ValidationError, match="temperature scaling has none"):
        Calibration.model_validate(FIXED.model_dump() | {"method": "temperature"})


def from_sources(rng: np.random.Generator, sources: int, spread: float = 1.0) -> tuple[NDArray[np.float64], list[str]]:
    """Logits of photographs from new sources of 20 to 200 images, each with an offset of its own."""
    sizes = rng.integers(20, 200, sources)
    logits = np.concatenate([rng.normal(rng.normal(0, spread), 1, size) for size in sizes])
    return logits, np.repeat([f"s{i}" for i in range(sources)], sizes).tolist()


def test_a_threshold_over_sources_holds_for_new_ones_where_one_over_images_does_not() -> None:
    """Shares of photographs from new sources above the threshold, over 100 draws of twelve sources."""
    rng = np.random.default_rng(5)
    new, of = from_sources(rng, 1000)
    weights = source_weights(of)
    plain, by_source = [], []
    for _ in range(100):
        logits, sources = from_sources(rng, 12)
        plain.append(weights[new > upper_threshold(logits, 0.05)].sum())
        by_source.append(weights[new > upper_threshold_by_source(logits, sources, 0.05, draws=200)].sum())
    assert np.mean(plain) > 0.06
    assert np.mean(by_source) < 0.05
    assert np.mean(np.array(plain) <= 0.05) < 0.45
    assert np.mean(np.array(by_source) <= 0.05) > 0.6  # 0.9 is aimed at; few sources make a bootstrap optimistic


def test_a_threshold_over_sources_is_the_quantile_of_the_weighted_quantiles_of_its_draws() -> None:
    scores, sources = np.array([0.0, 1, 2, 3, 10, 20]), ["a", "a", "a", "a", "b", "c"]
    assert source_weights(sources) == pytest.approx(np.array([0.5, 0.5, 0.5, 0.5, 1, 1]) / 4)
    assert weighted_quantile(scores, source_weights(sources), 0.5) == 3
    assert weighted_quantile(scores, source_weights(sources), 0.51) == 10
    assert weighted_quantile(scores[::-1].copy(), np.ones(6), 1.0) == 20
    # c is in a draw of three sources with probability 1 - (2/3)^3 = 0.70, and then it is the highest.
    found = {q: upper_threshold_by_source(scores, sources, 0.1, confidence=q) for q in (0.2, 0.5, 0.9)}
    assert found == {0.2: 10, 0.5: 20, 0.9: 20}
    assert upper_threshold_by_source(scores, sources, 0.1) == upper_threshold_by_source(scores, sources, 0.1)
    with pytest.raises(ConfigError, match="rate=0"):
        upper_threshold_by_source(scores, sources, 0)


def test_each_source_is_left_out_in_turn() -> None:
    rng = np.random.default_rng(1)
    logits, sources = from_sources(rng, 6, spread=0.0)
    odd = np.concatenate([logits, rng.normal(9, 1, 50)])
    shares = leave_one_source_out(odd, [*sources, *["odd"] * 50], 0.05)
    assert list(shares) == ["odd", *(f"s{i}" for i in range(6))]
    assert shares["odd"] == 1
    assert max(share for source, share in shares.items() if source != "odd") < 0.05


def test_a_calibration_over_sources_says_over_how_many() -> None:
    rng = np.random.default_rng(2)
    real, sources = from_sources(rng, 8)
    ai = rng.normal(4, 1, 300)
    made = ["x"] * 200 + ["y"] * 100
    logits, labels = np.concatenate([real, ai]), [0] * len(real) + [1] * 300
    plain = fit_calibration({"as stored": logits}, labels)
    own = fit_calibration({"as stored": logits}, labels, sources=[*sources, *made])
    assert (plain.n_sources, own.n_sources) == (0, 8)
    bound = upper_threshold_by_source(real, sources, 0.05)
    assert own.thresholds.generated == pytest.approx(own.probability(bound), abs=1e-4)
    assert own.thresholds.generated > plain.thresholds.generated
    low = weighted_quantile(ai, source_weights(made), 0.1)
    assert own.thresholds.real == pytest.approx(own.probability(min(low, bound)), abs=1e-4)
    assert move_to_photographs(own, real).n_sources == 0
    with pytest.raises(DataError, match="need as many sources, not 2"):
        fit_calibration({"as stored": logits}, labels, sources=["a", "b"])


def test_files_keep_the_older_names_of_fields_and_both_names_are_read() -> None:
    stored = json.loads(FIXED.model_dump_json())
    assert (stored["real"], stored["ai"], stored["thresholds"]) == (50, 50, {"real": 0.25, "ai": 0.8})
    assert "n_real" not in stored
    newer = {key: value for key, value in stored.items() if key not in ("real", "ai")} | {
        "n_real": 50,
        "n_generated": 50,
        "thresholds": {"real": 0.25, "generated": 0.8},
    }
    assert Calibration.model_validate(stored) == Calibration.model_validate(newer) == FIXED


def test_a_kind_that_is_often_called_generated_is_named() -> None:
    counts = {"paintings": (100, 69), "clip art": (100, 20), "stock photographs": (59, 11), "screenshots": (24, 0)}
    alarms = [FalseAlarms(kind=kind, photographs=n, called_generated=k) for kind, (n, k) in counts.items()]
    assert [each.kind for each in alarms if each.often] == ["paintings", "clip art"]
