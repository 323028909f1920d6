"""A report's figures against sums done by hand, its intervals and its JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from clipmole import metrics
from clipmole.calibration import Calibration, fit_calibration
from clipmole.data.sample import Sample
from clipmole.data.samples import source_hash
from clipmole.errors import DataError
from clipmole.evaluation.bootstrap import bootstrap_indices
from clipmole.evaluation.estimates import (
    COMPARED,
    QUICK,
    RANKING,
    Replicates,
    estimate_kinds,
    estimate_origins,
    estimate_set,
    mean_generator_ap,
    mean_replicates,
    metric_by_generator,
    report_set,
    report_table,
    verdict_metrics,
)
from clipmole.evaluation.records import ALL_SETS, Estimate, SetReport, TrainedOn
from clipmole.evaluation.scores import ScoreTable
from clipmole.records import Thresholds, Verdict

UNIT = Calibration(  # the logit is the log-odds
    slope=1.0,
    intercept=0.0,
    thresholds=Thresholds(real=0.3, generated=0.8),
    max_false_alarm=0.05,
    max_miss=0.1,
    n_real=50,
    n_generated=50,
    variants=("as stored",),
)


def named(generators: Iterable[str]) -> list[Sample]:
    """Samples without files; "camera" is a photograph."""
    return [
        Sample(path=Path(f"{i}.png"), label=0 if name == "camera" else 1, generator=name, split="test")
        for i, name in enumerate(generators)
    ]


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


# Four photographs, two images of generator a, three of b.
GENERATORS = ["camera", "a", "camera", "b", "camera", "a", "b", "camera", "b"]
PROBABILITIES = [0.1, 0.9, 0.45, 0.2, 0.35, 0.6, 0.85, 0.95, 0.55]
SAMPLES = named(GENERATORS)
LOGITS = np.array([logit(p) for p in PROBABILITIES])


def measured(
    samples: list[Sample],
    logits: NDArray[np.float64],
    calibration: Calibration | None,
    name: str = "s",
    **settings: Any,
) -> SetReport:
    found = estimate_set(name, samples, logits, calibration, **settings)
    return report_set("detector", name, "as stored", samples, found)


def report(calibration: Calibration | None = UNIT, **settings: Any) -> SetReport:
    return measured(SAMPLES, LOGITS, calibration, "some set", **({"resamples": 200} | settings))


# -- figures --------------------------------------------------------------------------------------------------


def test_figures_are_those_computed_by_hand() -> None:
    found = report()
    values = {name: figure.value for name, figure in found.estimates.items()}
    # Falling: .95 camera, .9 a, .85 b, .6 a, .55 b, .45 camera, .35 camera, .2 b, .1 camera
    assert values == pytest.approx(
        {
            "average_precision": (1 / 2 + 2 / 3 + 3 / 4 + 4 / 5 + 5 / 8) / 5,
            "auroc": (4 * 3 + 1) / 20,  # four of five are above three of four photographs, the last above one
            "tpr_at_1_percent_fpr": 0.0,  # the highest is a photograph
            "tpr_at_5_percent_fpr": 0.0,
            "equal_error_rate": values["equal_error_rate"],  # test_metrics has its formula
            "oracle_accuracy": 7 / 9,  # best at .5: wrong are camera .95 and b .2
            "accuracy": 7 / 9,  # wrong: camera .95, b .2
            "raw_accuracy": 7 / 9,  # the unit calibration's 0.5 is logit 0
            "alarm_accuracy": 5 / 9,  # above .8: a, b right and camera wrong; below: b, b, a wrong
            "balanced_accuracy": (3 / 4 + 4 / 5) / 2,
            "real_accuracy": 3 / 4,
            "fake_accuracy": 4 / 5,
            # Bins of a tenth: .1 0, .2 1, .35 0, .45 0, .55 1, .6 1, .85 1, and (.9 1, .95 0) together
            "calibration_error": (0.1 + 0.8 + 0.35 + 0.45 + 0.45 + 0.4 + 0.15 + 0.85) / 9,
            "negative_log_likelihood": -sum(
                math.log(p if name != "camera" else 1 - p) for p, name in zip(PROBABILITIES, GENERATORS, strict=True)
            )
            / 9,
            "selective_accuracy": 3
            / 5,  # answered: camera .1 and b .2 as real, a .9, b .85 and camera .95 as generated
            "false_alarm": 1 / 4,  # above .8
            "detected": 2 / 5,
            "miss": 1 / 5,  # below .3
            "uncertain": 4 / 9,
        },
        abs=1e-12,
    )


def test_a_generators_figure_is_its_images_against_all_photographs() -> None:
    found = report()
    a = (1 / 2 + 2 / 3) / 2  # camera, a, a, camera, camera, camera
    b = (1 / 2 + 2 / 3 + 3 / 6) / 3  # camera, b, b, camera, camera, b, camera
    aps = {name: figures["average_precision"].value for name, figures in found.generators.items()}
    assert aps == pytest.approx({"a": a, "b": b})
    assert found.means["average_precision"].value == pytest.approx((a + b) / 2)
    accuracies = {name: figures["accuracy"].value for name, figures in found.generators.items()}
    assert accuracies == pytest.approx({"a": 5 / 6, "b": 5 / 7})  # wrong: camera .95; camera .95 and b .2
    assert found.means["accuracy"].value == pytest.approx((5 / 6 + 5 / 7) / 2)
    assert (found.n_real, found.n_generated, found.set, found.condition) == (4, 5, "some set", "as stored")


def test_the_mean_over_generators_equals_scikit_learns_aps() -> None:
    rng = np.random.default_rng(0)
    generators = np.array(["camera"] * 30 + ["x"] * 10 + ["y"] * 20 + ["z"] * 3)
    labels = (generators != "camera").astype(np.int64)
    scores = np.round(rng.normal(labels), 1)
    aps = {}
    for name in "xyz":
        own = np.isin(generators, ["camera", name])
        aps[name] = average_precision_score(labels[own], scores[own])
    assert metric_by_generator(metrics.average_precision, generators, labels, scores) == pytest.approx(aps, abs=1e-12)
    assert mean_generator_ap(generators, labels, scores) == pytest.approx(np.mean(list(aps.values())), abs=1e-12)


def test_photographs_of_several_sources_all_count_against_every_generator() -> None:
    generators, labels = np.array(["camera", "phone", "a"]), np.array([0, 0, 1])
    assert mean_generator_ap(generators, labels, np.array([3.0, 2.0, 1.0])) == pytest.approx(1 / 3)


def test_the_mean_over_generators_needs_both_classes() -> None:
    names, scores = np.array(["camera", "camera"]), np.array([0.0, 1.0])
    assert math.isnan(mean_generator_ap(names, np.array([0, 0]), scores))
    assert math.isnan(mean_generator_ap(names, np.array([1, 1]), scores))


def test_shares_are_those_of_the_verdicts_and_add_to_1() -> None:
    rng = np.random.default_rng(0)
    samples = named(["camera"] * 70 + ["a"] * 50)
    labels = np.array([s.label for s in samples])
    logits = np.round(rng.normal(2 * labels, 1), 1)  # ties, also at the thresholds
    thresholds = Thresholds(real=UNIT.probability(0.5), generated=UNIT.probability(1.5))
    calibration = UNIT.model_copy(update={"thresholds": thresholds})
    found = measured(samples, logits, calibration, resamples=10).estimates
    given = np.array([calibration.verdict(x) for x in logits.tolist()])
    shares = {(label, verdict): (given[labels == label] == verdict).mean() for label in (0, 1) for verdict in Verdict}
    assert found["false_alarm"].value == pytest.approx(shares[0, Verdict.AI_GENERATED])
    assert found["detected"].value == pytest.approx(shares[1, Verdict.AI_GENERATED])
    assert found["miss"].value == pytest.approx(shares[1, Verdict.REAL])
    assert found["uncertain"].value == pytest.approx((given == Verdict.UNCERTAIN).mean())
    cleared = shares[0, Verdict.REAL]
    told = 70 / 120 * (found["false_alarm"].value + cleared) + 50 / 120 * (
        found["detected"].value + found["miss"].value
    )
    assert told + found["uncertain"].value == pytest.approx(1, abs=1e-12)


def test_an_uncalibrated_detector_reports_ranking_and_accuracies_at_logit_0() -> None:
    found = report(None)
    assert list(found.estimates) == [*RANKING, "accuracy", "real_accuracy", "fake_accuracy"]
    # The unit calibration's probability 0.5 is logit 0.
    for name in ("accuracy", "real_accuracy", "fake_accuracy"):
        assert found.estimates[name].value == report().estimates[name].value
    assert list(report().estimates) == [*RANKING, *verdict_metrics(UNIT), "raw_accuracy"]


def test_only_the_figures_that_are_asked_for_are_made() -> None:
    assert set(report(only=QUICK).estimates) == set(QUICK)


def test_the_figures_do_not_change_where_probabilities_saturate() -> None:
    far = measured(SAMPLES, LOGITS * 1e4, UNIT, resamples=10).estimates
    assert far["average_precision"].value == report().estimates["average_precision"].value
    assert far["calibration_error"].value == pytest.approx(3 / 9 - 1 / 9)  # p is 0 or 1: one false 1, one false 0


@pytest.mark.parametrize("label", [0, 1])
def test_a_set_of_one_class_reports_what_is_defined(label: int) -> None:
    samples = named(["a" if label else "camera"] * 4)
    found = measured(samples, np.array([-3.0, 0.1, 1.0, 4.0]), UNIT, resamples=20)
    assert found.estimates["uncertain"].value == pytest.approx(2 / 4)
    assert found.estimates["false_alarm" if label == 0 else "detected"].value == pytest.approx(1 / 4)
    undefined = set(RANKING) | {"balanced_accuracy"}
    undefined |= {"false_alarm", "real_accuracy"} if label else {"detected", "miss", "fake_accuracy"}
    assert {name for name, figure in found.estimates.items() if math.isnan(figure.value)} == undefined
    assert math.isnan(found.means["average_precision"].value)
    assert math.isnan(found.means["average_precision"].low)
    assert list(found.generators) == ["a"] * label


def test_a_set_without_images_or_with_other_scores_is_refused() -> None:
    with pytest.raises(DataError, match="set 'none': needs images"):
        measured([], np.zeros(0), None, "none")
    with pytest.raises(DataError, match="9 images, 8 logits"):
        measured(SAMPLES, LOGITS[1:], None)
    with pytest.raises(DataError, match="not finite"):
        measured(SAMPLES, np.append(LOGITS[1:], np.nan), None)


# -- intervals ------------------------------------------------------------------------------------------------


def ordinary() -> tuple[list[Sample], NDArray[np.float64], Calibration]:
    """280 images of 11 generators and a camera, and a calibration of other such images."""
    rng = np.random.default_rng(0)
    samples = named(["camera"] * 140 + [f"g{i % 11:02}" for i in range(140)])
    labels = np.repeat([0, 1], 140)
    other = rng.normal(2 * labels)
    return samples, rng.normal(2 * labels), fit_calibration({"as stored": other}, labels.tolist())


def test_an_ordinary_set_is_reported_in_seconds_with_intervals_around_the_values() -> None:
    samples, logits, calibration = ordinary()
    start = time.process_time()
    found = measured(samples, logits, calibration)
    assert time.process_time() - start < 30  # of this process; two on a free core
    assert len(found.estimates) == len(RANKING) + len(verdict_metrics(calibration)) + 1
    assert len(found.generators) == 11
    shares = {name: figure for name, figure in found.estimates.items() if name != "negative_log_likelihood"}
    own = [figure for figures in found.generators.values() for figure in figures.values()]
    for figure in (*shares.values(), *own, *found.means.values()):
        assert figure.low <= figure.value <= figure.high
        assert 0 <= figure.low < figure.high <= 1
    # The normal approximation of a share and of an AUROC (Hanley and McNeil 1982) is about as wide.
    share = found.estimates["real_accuracy"]
    assert share.high - share.low == pytest.approx(2 * 1.96 * math.sqrt(share.value * (1 - share.value) / 140), rel=0.2)
    auroc, n = found.estimates["auroc"], 140
    a = auroc.value
    variance = (a * (1 - a) + (n - 1) * (a / (2 - a) - a**2) + (n - 1) * (2 * a**2 / (1 + a) - a**2)) / n**2
    assert auroc.high - auroc.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.2)


def test_intervals_of_generators_resample_photographs_and_each_generator() -> None:
    found = report(resamples=150, seed=4)
    generators, labels = np.array(GENERATORS), np.array([s.label for s in SAMPLES])
    code = {"camera": 0, "a": 1, "b": 2}
    aps: dict[str, list[float]] = {"a": [], "b": []}
    strata, names = [code[name] for name in GENERATORS], [sample.path.name for sample in SAMPLES]
    for index in bootstrap_indices(strata, 150, seed=4, names=names):
        drawn, y, s = generators[index], labels[index], LOGITS[index]
        assert [(drawn == name).sum() for name in code] == [4, 2, 3]
        for name, values in aps.items():
            own = np.isin(drawn, ["camera", name])
            values.append(average_precision_score(y[own], s[own]))
    for name, values in aps.items():
        expected = np.percentile(values, [2.5, 97.5])
        figure = found.generators[name]["average_precision"]
        assert (figure.low, figure.high) == pytest.approx(tuple(expected), abs=1e-12)
    expected = np.percentile(np.mean(list(aps.values()), axis=0), [2.5, 97.5])
    mean = found.means["average_precision"]
    assert (mean.low, mean.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_intervals_depend_on_the_seed_alone() -> None:
    assert report(seed=1) == report(seed=1)
    assert report(seed=1) != report(seed=2)
    values = [{name: figure.value for name, figure in report(seed=seed).estimates.items()} for seed in (1, 2)]
    assert values[0] == values[1]


# -- tables of several detectors ------------------------------------------------------------------------------


def test_a_paired_difference_is_smaller_in_spread_than_two_separate_ones() -> None:
    rng = np.random.default_rng(0)
    samples = named(["camera"] * 100 + ["a"] * 100)
    labels = np.repeat([0, 1], 100)
    first = rng.normal(labels * 2.0)
    second = first + rng.normal(size=200) * 0.1  # nearly the same detector
    one, two = (estimate_set("s", samples, s, None, only=["auroc"], resamples=300) for s in (first, second))
    found = one.estimates["auroc"].minus(two.estimates["auroc"]).estimate()
    assert found.value == pytest.approx(roc_auc_score(labels, first) - roc_auc_score(labels, second), abs=1e-12)
    assert found.low <= found.value <= found.high
    alone = one.estimates["auroc"].estimate()
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    names = [sample.path.name for sample in samples]
    gaps = [
        roc_auc_score(labels[i], first[i]) - roc_auc_score(labels[i], second[i])
        for i in bootstrap_indices(labels, 300, names=names)
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])), abs=1e-12)


def test_images_of_one_prompt_are_drawn_together() -> None:
    """Each image four times under one group: the interval is that of one each, and four times as many images."""
    rng = np.random.default_rng(0)
    once = named(["camera"] * 30 + ["a"] * 15 + ["b"] * 15)
    scores = rng.normal(np.repeat([0, 1], 30))
    copies = [s.model_copy(update={"group": s.path.name}) for s in once for _ in range(4)]
    single = measured(once, scores, UNIT, resamples=200)
    grouped = measured(copies, np.repeat(scores, 4), UNIT, resamples=200)
    naive = measured([s.model_copy(update={"group": ""}) for s in copies], np.repeat(scores, 4), UNIT, resamples=200)
    assert (single.groups, grouped.groups, naive.groups) == (60, 60, 240)
    assert (grouped.n_real, grouped.n_generated) == (120, 120)

    def width(found: SetReport, key: str = "auroc") -> float:
        return found.estimates[key].high - found.estimates[key].low

    for key in ("auroc", "accuracy", "negative_log_likelihood"):
        assert grouped.estimates[key].value == pytest.approx(single.estimates[key].value)
        assert width(grouped, key) == pytest.approx(width(single, key), rel=0.2)
        assert width(naive, key) == pytest.approx(width(single, key) / 2, rel=0.2)
    own = [each.generators["a"]["average_precision"] for each in (grouped, naive)]
    assert own[1].high - own[1].low < 0.7 * (own[0].high - own[0].low)


def test_one_prompt_for_two_generators_ties_their_images_together() -> None:
    """A prompt that two generators drew: their shares of the mean move together, so its interval is wider."""
    rng = np.random.default_rng(1)
    difficulty = rng.normal(size=40)
    samples = named(["camera"] * 40 + ["a"] * 40 + ["b"] * 40)
    prompts = [s.model_copy(update={"group": f"p{i % 40}" * (i >= 40)}) for i, s in enumerate(samples)]
    scores = np.concatenate([rng.normal(size=40), 1 + difficulty, 1 + difficulty])
    together = measured(prompts, scores, None, resamples=300)
    apart = measured(samples, scores, None, resamples=300)
    assert together.groups == 80
    spread = [f.means["accuracy"].high - f.means["accuracy"].low for f in (together, apart)]
    assert spread[0] > 1.1 * spread[1]


def test_a_mean_passes_over_what_is_not_defined() -> None:
    nan = math.nan
    parts = [
        Replicates(0.5, np.array([0.1, 0.2, nan])),
        Replicates(nan, np.array([0.9, 0.9, 0.9])),
        Replicates(0.7, np.array([0.3, nan, nan])),
    ]
    found = mean_replicates(parts)
    assert found.value == pytest.approx(0.6)
    np.testing.assert_allclose(found.draws, [0.2, 0.2, nan])
    assert math.isnan(mean_replicates(parts[1:2]).value)
    assert math.isnan(mean_replicates([]).estimate().low)


def test_a_table_is_reported_by_set_condition_and_detector() -> None:
    rng = np.random.default_rng(0)
    labels = np.array([s.label for s in SAMPLES] * 2)
    logits = rng.normal(labels, size=(2, 3, 18))
    second = [s.model_copy(update={"path": Path("other") / s.path}) for s in SAMPLES]
    table = ScoreTable(
        (*SAMPLES, *second), np.repeat(["one", "two"], 9), ("x", "y"), ("as stored", "equalised", "JPEG 50"), logits
    )
    reports, differences = report_table(table, {"x": UNIT, "y": None}, resamples=20)
    sets = ("one", "two", ALL_SETS)
    assert [(r.set, r.condition, r.detector) for r in reports] == [
        (name, condition, detector) for name in sets for condition in table.conditions for detector in "xy"
    ]
    found = estimate_set("two", second, logits[0, 1, 9:], UNIT, resamples=20)
    assert reports[8] == report_set("x", "two", "equalised", second, found)
    assert set(reports[4].estimates) == set(QUICK)  # JPEG 50, x
    assert reports[4].generators == {}
    assert {(d.set, d.condition, d.metric) for d in differences} == {
        (name, condition, metric) for name in sets for condition in ("as stored", "equalised") for metric in COMPARED
    }
    first = next(d for d in differences if (d.set, d.condition, d.metric) == ("two", "equalised", "auroc"))
    expected = roc_auc_score(labels[9:], logits[0, 1, 9:]) - roc_auc_score(labels[9:], logits[1, 1, 9:])
    assert (first.first, first.second) == ("x", "y")
    assert first.estimate.value == pytest.approx(expected, abs=1e-12)


def test_means_over_sets_have_intervals_of_their_own() -> None:
    """Two sets that share their photographs: their errors move together; with others they do not."""
    rng = np.random.default_rng(0)
    photographs = [s.model_copy(update={"path": Path("laion") / s.path}) for s in named(["camera"] * 60)]
    fakes = {g: [s.model_copy(update={"path": Path(g) / s.path}) for s in named([g] * 400)] for g in "ab"}
    scores = np.concatenate([rng.normal(size=60), rng.normal(1, 1, 400)])

    def means(second: list[Sample]) -> tuple[Estimate, Estimate, SetReport]:
        samples = (*photographs, *fakes["a"], *second, *fakes["b"])
        table = ScoreTable(samples, np.repeat(["a", "b"], 460), ("x",), ("as stored",), np.tile(scores, 2)[None, None])
        reports, _ = report_table(table, {"x": None}, resamples=300)
        return reports[0].estimates["auroc"], reports[2].estimates["auroc"], reports[2]

    single, shared, report = means(photographs)
    assert (report.set, report.n_real, report.n_generated, report.groups) == (ALL_SETS, 60, 800, 860)
    assert shared.value == pytest.approx(single.value)
    other = [s.model_copy(update={"path": Path("imagenet") / s.path}) for s in photographs]
    _, separate, report = means(other)
    assert report.n_real == 120
    width, apart = shared.high - shared.low, separate.high - separate.low
    assert width > 0.9 * (single.high - single.low)  # the photographs' error does not average out
    assert apart == pytest.approx((single.high - single.low) / math.sqrt(2), rel=0.2)


# -- JSON -----------------------------------------------------------------------------------------------------


def test_what_is_not_defined_is_null_in_json_and_nan_again() -> None:
    found = measured(named(["a", "a"]), np.array([1.0, 2.0]), UNIT, resamples=5)
    text = found.model_dump_json()
    assert json.loads(text, parse_constant=pytest.fail)["figures"]["auroc"] == {
        "value": None,
        "low": None,
        "high": None,
    }
    back = SetReport.model_validate_json(text)
    assert math.isnan(back.estimates["auroc"].value)
    assert back.estimates["detected"] == found.estimates["detected"]
    assert back.model_dump_json() == text


def test_a_figure_reads_as_value_and_interval() -> None:
    assert str(Estimate(value=0.91234, low=0.9, high=0.95)) == "0.912 [0.900, 0.950]"


def from_places(rng: np.random.Generator) -> tuple[list[Sample], NDArray[np.float64]]:
    """Photographs of the sources "a" and "b", images of the generators "g" and "h", 30 of each, and logits."""
    samples = [
        Sample(path=Path(f"{name}{i}.png"), label=label, generator=name if label else "camera", split="test",
               source="" if label else name, kind="" if label else {"a": "stock", "b": "scan"}[name])
        for name, label in (("a", 0), ("b", 0), ("g", 1), ("h", 1))
        for i in range(30)
    ]  # fmt: skip
    return samples, rng.normal(np.repeat([-1.0, 1.0, 2.0, 0.5], 30), 1)


def test_the_2_by_2_tells_known_from_new_sources_and_generators() -> None:
    samples, scores = from_places(np.random.default_rng(0))
    trained_on = TrainedOn(generators=("g", "other"), sources=(source_hash("a"),))
    found = estimate_origins(samples, scores, trained_on, resamples=50, seed=0)
    own = {"a": slice(0, 30), "b": slice(30, 60), "g": slice(60, 90), "h": slice(90, 120)}
    expected = {(True, True): "ag", (True, False): "ah", (False, True): "bg", (False, False): "bh"}
    assert [(o.known_source, o.known_generator) for o in found] == list(expected)
    for cell, (photographs, generated) in zip(found, expected.values(), strict=True):
        values = np.concatenate([scores[own[photographs]], scores[own[generated]]])
        assert cell.auroc.value == pytest.approx(roc_auc_score([0] * 30 + [1] * 30, values))
        assert cell.auroc.low < cell.auroc.value < cell.auroc.high
        assert (cell.n_real, cell.n_generated) == (30, 30)
    nothing = estimate_origins(samples, scores, TrainedOn(generators=(), sources=()), resamples=5, seed=0)
    assert [(o.n_real, o.n_generated) for o in nothing] == [(0, 0), (0, 60), (60, 0), (60, 60)]
    assert [math.isnan(o.auroc.value) for o in nothing] == [True, True, True, False]
    assert estimate_origins(samples, scores, None, resamples=5, seed=0) == ()
    unnamed = [samples[0].model_copy(update={"source": ""}), *samples[1:]]
    assert estimate_origins(unnamed, scores, trained_on, resamples=5, seed=0) == ()


def test_false_alarms_are_told_by_kind_of_photograph() -> None:
    samples, scores = from_places(np.random.default_rng(1))
    scan, stock = estimate_kinds(samples, scores, UNIT, resamples=50, seed=0)
    p = UNIT.probabilities(scores)
    for found, kind, own in ((stock, "stock", p[:30]), (scan, "scan", p[30:60])):
        assert (found.kind, found.n_real) == (kind, 30)
        assert found.false_alarm.value == pytest.approx((own > 0.8).mean())
        assert found.uncertain.value == pytest.approx(((own >= 0.3) & (own <= 0.8)).mean())
    assert scan.false_alarm.low < scan.false_alarm.value < scan.false_alarm.high
    assert estimate_kinds(samples, scores, None, resamples=5, seed=0) == ()
    assert estimate_kinds(samples[60:], scores[60:], UNIT, resamples=5, seed=0) == ()


def test_a_report_tells_origins_and_kinds_under_the_main_conditions() -> None:
    samples, scores = from_places(np.random.default_rng(2))
    conditions = ("as stored", "equalised", "JPEG 50")
    table = ScoreTable(tuple(samples), np.array(["s"] * 120), ("d", "e"), conditions, np.stack([[scores] * 3] * 2))
    trained_on = {"d": TrainedOn(generators=("g",), sources=(source_hash("b"),))}
    reports, _ = report_table(table, {"d": UNIT, "e": None}, resamples=5, trained_on=trained_on)
    found = {(r.detector, r.condition): (len(r.origins), len(r.kinds)) for r in reports}
    assert found == {(d, c): (4, 2) if d == "d" and c != "JPEG 50" else (0, 0) for d in "de" for c in conditions}
    again = SetReport.model_validate_json(reports[0].model_dump_json())
    assert (again.origins, again.kinds) == (reports[0].origins, reports[0].kinds)
