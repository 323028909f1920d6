"""Untrusted text is shown on one line, escaped names come back, and no spreadsheet runs a cell."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmole.plumbing.text import MAX_LINE, csv_cell, escaped, first_line, one_line, printable, unescaped


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("caf\u00e9 \U0001f469\u200d\U0001f469.png", "caf\u00e9 \U0001f469\u200d\U0001f469.png"),
        ("at 1.00.00\u202fPM.png", "at 1.00.00\u202fPM.png"),  # as macOS names its screenshots
        (os.fsdecode(b"caf\xe9.png"), "caf\\udce9.png"),
        ("a.jpg\nlikely photograph 1 % b.jpg", "a.jpg\\u000alikely photograph 1 % b.jpg"),
        ("\x1b[2J\x7f\u2028\x9b.jpg", "\\u001b[2J\\u007f\\u2028\\u009b.jpg"),
        ("exe\u202egpj.png", "exe\\u202egpj.png"),
        ("C:\\users\\new\\one.jpg", "C:\\users\\new\\one.jpg"),
        ("\\udce9.png", "\\u005cudce9.png"),
    ],
)
def test_names_are_printable_in_one_line_and_come_back(name: str, text: str) -> None:
    assert escaped(name) == text
    assert unescaped(text) == name


@given(st.binary(max_size=30) | st.lists(st.sampled_from(["\\", "u", "005c", "dcff", "\n", "x"])).map("".join))
def test_any_name_comes_back(name: bytes | str) -> None:
    given_name = os.fsdecode(name)
    text = escaped(given_name)
    assert unescaped(text) == given_name
    assert not set(text) & set("\n\r\x1b")
    text.encode()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", " =1", "'=1"])
def test_a_cell_that_a_spreadsheet_would_run_is_guarded(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "/photos/-a.jpg", '"=1'])
def test_other_cells_stay(text: str) -> None:
    assert csv_cell(text) == text


def test_printable_replaces_and_keeps() -> None:
    assert printable("a\nb\u202ec\udc80") == "a\ufffdb\ufffdc\ufffd"
    assert printable("a\nb\0", keep="\n") == "a\nb\ufffd"


def test_one_line_is_cut() -> None:
    assert one_line(" a\n\x07 b\u200b") == "a b"
    assert one_line("word " * 100) == ("word " * 100)[: MAX_LINE - 3].rstrip() + "..."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad\nworse"), "bad"),
        (OSError(), "OSError"),
        (SyntaxError(), "SyntaxError"),
        (KeyError("\x1b"), r"'\x1b'"),
        (OSError("\n x"), "x"),
    ],
)
def test_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
