"""Lists of paths as editors, shells and `find -print0` write them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from clipmole.errors import DataError
from clipmole.plumbing.path_lists import listed_paths

PATHS = ["/photos/a.jpg", "/photos/caf\u00e9.jpg", "b c.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_in_any_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes((end.join([*PATHS, ""]) + end).encode(encoding))
    assert list(listed_paths(file)) == PATHS


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_names_of_any_bytes_separated_by_nul(tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "list"
    file.write_bytes(mark + b"a\nb.png\0caf\xe9.png\0" + b"x" * 70000 + b"\0")
    assert list(listed_paths(file)) == ["a\nb.png", os.fsdecode(b"caf\xe9.png"), "x" * 70000]


def test_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=("\n".join(PATHS).encode(),))
    writer.start()
    assert list(listed_paths(pipe)) == PATHS
    writer.join()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("/photos/a.jpg\n".encode("utf-16")[:-1], "cut short or damaged"),
        (b"x" * 2**21, "is not a list of paths"),
        (
            b"\xff\xd8\xff\xe0\x00\x10JFIF\n",
            "list.txt: is not a list of paths but a file itself; name it without --list",
        ),
        (b"PAR1\x15\x04\n", "is not a list of paths but a file itself"),
        (("x" * 2**21).encode("utf-16"), "is not a list of paths"),
    ],
)
def test_what_is_no_list_is_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(data)
    with pytest.raises(DataError, match=reason):
        list(listed_paths(file))


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        list(listed_paths(tmp_path / "absent"))
