"""What the table for people says under its rows."""

from __future__ import annotations

import json

import pytest

from clipmole.calibration import FalseAlarms
from clipmole.cli.render import DetectionTable, JSONLines, of_ai
from clipmole.records import Detection, Family, Thresholds, Verdict


def test_a_percentage_says_what_it_is_of() -> None:
    assert [of_ai(p) for p in (0.0, 0.184, 1.0)] == ["1 % AI", "18 % AI", "99 % AI"]


DETECTION = Detection(
    source="a.jpg",
    logit=0.1,
    probability=0.52,
    verdict=Verdict.UNCERTAIN,
    thresholds=Thresholds(real=0.3, generated=0.7),
    detector="d",
    width=9,
    height=9,
    tiles=1,
    coverage=1.0,
)


@pytest.mark.parametrize("labels_only", [False, True])
def test_uncertain_and_measured_false_alarms_are_explained(
    capsys: pytest.CaptureFixture[str], labels_only: bool
) -> None:
    table = DetectionTable(labels_only)
    table.alarms = (FalseAlarms(kind="stock photographs", photographs=50, called_generated=12),)
    table.write(DETECTION)
    table.close()
    printed = capsys.readouterr()
    assert ("52 % AI" in printed.out) is not labels_only
    assert "Uncertain: the detector cannot tell. Find the original file" in printed.err
    alarms = (
        "Images made by people that the detector wrongly called AI-generated, from sources it had never seen: "
        "12 of 50 stock photographs."
    )
    assert alarms in printed.err


@pytest.mark.parametrize(("labels_only", "share"), [(False, " (72 % among the families that it knows)"), (True, "")])
def test_a_likely_family_comes_with_how_often_it_was_right(
    capsys: pytest.CaptureFixture[str], labels_only: bool, share: str
) -> None:
    family = Family(name="sdxl\n", share=0.718, right=8, answers=10)
    named = DETECTION.model_copy(update={"verdict": Verdict.AI_GENERATED, "family": family})
    for detection in (DETECTION, named):
        DetectionTable(labels_only).write(detection)
    assert capsys.readouterr().out.splitlines()[2:] == [
        f"    likely family of generators, if it is AI-generated: sdxl\ufffd{share}; on validation images 8 of 10 such "
        "answers were right. Never a proof."
    ]
    JSONLines().write(DETECTION)
    JSONLines().write(named)
    said = [json.loads(line)["family"] for line in capsys.readouterr().out.splitlines()]
    assert said == [None, {"name": "sdxl\n", "share": 0.718, "right": 8, "answers": 10}]


@pytest.mark.parametrize("verdict", [Verdict.AI_GENERATED, Verdict.REAL])
def test_kinds_that_are_often_called_generated_are_named_where_something_is(
    capsys: pytest.CaptureFixture[str], verdict: Verdict
) -> None:
    table = DetectionTable()
    table.alarms = (FalseAlarms(kind="digital paintings", photographs=100, called_generated=69),)
    table.write(DETECTION.model_copy(update={"verdict": verdict}))
    table.close()
    said = "Ignore the verdict on digital paintings: the detector often calls them AI-generated although people made"
    assert (said in capsys.readouterr().err) is (verdict is Verdict.AI_GENERATED)
