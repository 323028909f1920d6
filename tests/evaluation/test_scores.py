"""The file of scores: whole lines count, others do not, and another evaluation's file is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from clipmole.data.sample import Sample
from clipmole.errors import DataError
from clipmole.evaluation.scores import ScoreFile

WHAT = {"conditions": ["as stored", "equalised"], "seed": 0}
ROWS = [(f"{i}.png", {"a@1": [float(i), -float(i)]}) for i in range(3)]


def samples(count: int) -> list[Sample]:
    return [Sample(path=Path(f"{i}.png"), label=i % 2, generator="g", split="s") for i in range(count)]  # type: ignore[arg-type]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    with ScoreFile(tmp_path / "new" / "scores.jsonl", WHAT) as file:
        file.append(ROWS[:2])
        file.append([("2.png", "is empty")])
    with ScoreFile(tmp_path / "new" / "scores.jsonl", WHAT) as file:
        assert file.done == dict(ROWS[:2]) | {"2.png": "is empty"}


def test_a_detector_that_is_added_has_lines_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with ScoreFile(path, WHAT) as file:
        file.append([*ROWS[:2], ("2.png", "is empty")])
        assert file.lacking("0.png", ["b@2", "a@1"]) == ["b@2"]
        assert file.lacking("2.png", ["b@2"]) == []
        assert file.lacking("3.png", ["b@2", "a@1"]) == ["b@2", "a@1"]
        file.append([("0.png", {"b@2": [7.0, 8.0]})])
    with ScoreFile(path, WHAT) as file:
        assert file.done["0.png"] == {"a@1": [0.0, -0.0], "b@2": [7.0, 8.0]}
        assert file.lacking("0.png", ["b@2", "a@1"]) == []
    assert len(path.read_text().splitlines()) == 5


def test_a_table_has_axes_of_detectors_conditions_images(tmp_path: Path) -> None:
    with ScoreFile(tmp_path / "scores.jsonl", WHAT) as file:
        rows = [("0.png", {"a@1": [1.0, 2.0], "b@2": [3.0, 4.0]}), ("1.png", {"b@2": [7.0, 8.0], "a@1": [5.0, 6.0]})]
        file.append([*rows, ("2.png", "is empty")])
        sets = {"t": [samples(3)[1]], "s": [samples(3)[0], samples(3)[2]]}
        table, failed = file.table(sets, {"a": "a@1", "b": "b@2"}, ["as stored", "equalised"])
    assert table.sets.tolist() == ["t", "s"]
    assert [str(sample.path) for sample in table.samples] == ["1.png", "0.png"]
    assert table.logits.tolist() == [[[5.0, 1.0], [6.0, 2.0]], [[7.0, 3.0], [8.0, 4.0]]]
    assert failed == {"2.png": "is empty"}


def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with ScoreFile(path, WHAT) as file:
        file.append(ROWS)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with ScoreFile(path, WHAT) as file:
            kept = max(0, sum(end <= cut for end in ends) - 1)
            assert list(file.done.items()) == [(key, logits) for key, logits in ROWS[:kept]]
            file.append(ROWS[kept:])
        assert path.read_bytes() == whole


def test_the_scores_of_another_evaluation_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with ScoreFile(path, WHAT) as file:
        file.append(ROWS)
    before = path.read_bytes()
    with pytest.raises(DataError, match="holds the scores of another evaluation"):
        ScoreFile(path, WHAT | {"seed": 1})
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b'{"path": "s"}\n', b"\xff\n"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "scores.jsonl"
    ScoreFile(path, WHAT).__exit__(None, None, None)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(DataError, match=r"scores\.jsonl, line 2: is damaged"):
        ScoreFile(path, WHAT)


def test_a_place_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written: .*name another folder") as error:
        ScoreFile(tmp_path / "file" / "scores.jsonl", WHAT)
    assert "\n" not in str(error.value)


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).standard_normal(50).tolist()
    with ScoreFile(tmp_path / "scores.jsonl", {"conditions": [""] * 50}) as file:
        file.append([("x", {"a": logits})])
    with ScoreFile(tmp_path / "scores.jsonl", {"conditions": [""] * 50}) as file:
        assert file.done["x"] == {"a": logits}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"path": "0.png", "logits": {"a@1": [' + "9" * 5000 + ", 1]}}",
        '{"path": "0.png", "logits": {"a@1": [1.0]}}',  # of two conditions
        '{"path": "0.png", "logits": {"a@1": "12"}}',
        '{"path": "0.png", "logits": {"a@1": [null, 2.0]}}',
        '{"path": "0.png", "logits": {"a@1": [NaN, 2.0]}}',
        '{"path": "0.png", "logits": [1.0, 2.0]}',
        '{"path": ["0.png"], "logits": {"a@1": [1.0, 2.0]}}',
        '{"path": "0.png", "error": 5}',
        '{"path": "0.png"}',
        "3",
    ],
)
def test_a_damaged_line_is_one_line_that_names_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "scores.jsonl"
    with ScoreFile(path, WHAT) as file:
        file.append(ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + line.encode() + b"\n")
    with pytest.raises(DataError, match=r"scores\.jsonl, line 5: is damaged; delete the file to start over") as error:
        ScoreFile(path, WHAT)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == whole + line.encode() + b"\n"


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scores.jsonl")
    with pytest.raises(DataError, match=r"scores\.jsonl: is not a regular file; name another --out"):
        ScoreFile(tmp_path / "scores.jsonl", WHAT)


def test_a_digit_that_changed_on_the_disk_is_found(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    with ScoreFile(path, WHAT) as file:
        file.append([("x.png", {"a@1": [1.25, 2.5]})])
    path.write_text(path.read_text().replace("1.25", "1.75"))
    with pytest.raises(DataError, match=r"scores\.jsonl, line 2: is damaged"):
        ScoreFile(path, WHAT)
