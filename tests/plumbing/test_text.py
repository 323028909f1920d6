"""Untrusted text is shown on one line, and an escaped name can be told from every other name."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmole.plumbing.text import MAX_LINE, escaped, first_line, one_line, printable

characters = st.characters(codec=None) | st.sampled_from(list("\\nrtxuU\n\t\x1b\u202e\udce9 a"))


def read_back(text: str) -> str:
    """What `escaped` was given."""
    escape = r"\\(\\|n|r|t|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})"
    plain = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
    return re.sub(escape, lambda found: plain.get(found[1]) or chr(int(found[1][1:], 16)), text)


@given(st.text(characters))
def test_an_escaped_text_is_printable_and_can_be_read_back(text: str) -> None:
    line = escaped(text)
    assert line.isprintable()
    assert read_back(line) == text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café.jpg", "café.jpg"),
        ("a.jpg\nlikely photograph 1 % b.jpg", r"a.jpg\nlikely photograph 1 % b.jpg"),
        (r"a.jpg\nlikely", r"a.jpg\\nlikely"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("\x1b[31mred", r"\x1b[31mred"),
        (r"C:\images\a.png", r"C:\images\a.png"),
    ],
)
def test_names_as_they_are_shown(name: str, shown: str) -> None:
    assert escaped(name) == shown


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
