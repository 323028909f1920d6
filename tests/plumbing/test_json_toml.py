"""JSON and TOML from anywhere: read, or one line that says why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipmole.errors import CheckpointError, ConfigError
from clipmole.plumbing.json_toml import NotReadable, parse_json, parse_toml, read_json, read_regular_file, read_toml


def test_what_is_well_formed_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, -2.5, true, null, 18446744073709551615]}')
    assert read_json(tmp_path / "a.json", CheckpointError) == {"a": [1, -2.5, True, None, 2**64 - 1]}
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfa = [1, -2.5]\nb = 1979-05-27")
    assert read_toml(tmp_path / "a.toml")["a"] == [1, -2.5]
    assert parse_json('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is not JSON: "),
        (b"{", "is not JSON: "),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 100_000, "99999999999999999999... is too large an integer"),
        (b"18446744073709551616", "is too large an integer"),
    ],
)
def test_json_that_is_wrong_or_hostile_is_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(NotReadable, match=reason) as raised:
        parse_json(data)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a = ", "is not a TOML file"),
        (b"\xff", "is not a TOML file: 'utf-8' codec"),
        (b"a = " + b"[" * 50_000, "nested too deeply"),
        (b"a = " + b"9" * 6000, "is not a TOML file"),
        (b"a = [{b = " + b"9" * 400 + b"}]", "an integer of more than 64 bits"),
    ],
)
def test_toml_that_is_wrong_or_hostile_is_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(NotReadable, match=reason) as raised:
        parse_toml(data)
    assert "\n" not in str(raised.value)


def test_what_is_no_regular_file_of_a_sane_size_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b"x" * 11)
    for path, reason in {
        tmp_path / "fifo": "is not a regular file",  # and nobody waits for a writer
        "/dev/zero": "is not a regular file",
        tmp_path: "is a directory",
        tmp_path / "absent": "cannot be read: No such file",
        "a" * 5000: "cannot be read: File name too long",
        "a\0b": "cannot be read: .*embedded null",
        tmp_path / "large": "is larger than 9.53674e-06 MiB",
    }.items():
        with pytest.raises(NotReadable, match=reason):
            read_regular_file(path, most=10)


def test_the_error_is_the_readers_and_names_file_and_cure(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.json: cannot be read: No such file or directory; train it again"):
        read_json(tmp_path / "a.json", CheckpointError, "train it again")
    with pytest.raises(ConfigError, match=r"a\.toml: cannot be read: No such file or directory$"):
        read_toml(tmp_path / "a.toml")
