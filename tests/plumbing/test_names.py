"""Names of files: printable in one line, and back; cells that no spreadsheet runs."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmole.plumbing.names import csv_cell, escape_name, unescape_name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("caf\u00e9 \U0001f469\u200d\U0001f469.png", "caf\u00e9 \U0001f469\u200d\U0001f469.png"),
        (os.fsdecode(b"caf\xe9.png"), "caf\\udce9.png"),
        ("a\nb\x1b[2J\x7f\u2028.jpg", "a\\u000ab\\u001b[2J\\u007f\\u2028.jpg"),
        ("exe\u202egpj.png", "exe\\u202egpj.png"),
        ("C:\\photos\\one.jpg", "C:\\photos\\one.jpg"),
        ("\\udce9.png", "\\u005cudce9.png"),
    ],
)
def test_names_are_printable_in_one_line_and_come_back(name: str, text: str) -> None:
    assert escape_name(name) == text
    assert unescape_name(text) == name


@given(st.binary(max_size=30) | st.lists(st.sampled_from(["\\", "u", "005c", "dcff", "\n", "x"])).map("".join))
def test_any_name_comes_back(name: bytes | str) -> None:
    given_name = os.fsdecode(name)
    text = escape_name(given_name)
    assert unescape_name(text) == given_name
    assert "\n" not in text
    text.encode()


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1"])
def test_a_cell_that_a_spreadsheet_would_run_is_guarded(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "/photos/-a.jpg", "'=1"])
def test_other_cells_stay(text: str) -> None:
    assert csv_cell(text) == text
