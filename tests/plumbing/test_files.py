"""Files and directories that appear whole or not at all, and what may be replaced by them."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from clipmole.plumbing.files import (
    foreign_file,
    nearest_existing,
    read_at_most,
    replacing_files,
    replacing_folder,
    whole_file,
    why_not_replaceable,
    write_texts,
)


def read_sign(path: Path) -> None:
    if path.read_text() != "ours":
        raise ValueError(f"{path.name} says {path.read_text()!r}")


KNOWN = {"sign": read_sign, "model.*": None}


def filled(folder: Path, **texts: str) -> Path:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_place_that_is_absent_empty_or_ours_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ours = filled(tmp_path / "ours", sign="ours", model__bin="x", __DS_Store="of the system")
    for place in (tmp_path / "absent", tmp_path / "deep" / "absent", tmp_path / "empty", ours):
        assert why_not_replaceable(place, "a thing", KNOWN) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "ours"]  # trying left nothing


def test_anything_else_is_refused_by_name(tmp_path: Path) -> None:
    foreign = filled(tmp_path / "foreign", sign="ours", thesis__txt="years of work")
    folder = filled(tmp_path / "folder", sign="ours")
    (folder / "model.d").mkdir()
    other = filled(tmp_path / "other", sign="of another program")
    unsigned = filled(tmp_path / "unsigned", model__bin="x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for place, reason in {
        foreign: "holds thesis.txt, which does not belong to a thing and would be lost",
        folder: "holds model.d, which does not belong to a thing",
        other: "is not a thing: sign says 'of another program'",
        unsigned: "is not a thing: it has no sign, and holds model.bin",
        tmp_path / "file": "exists and is not a directory",
        tmp_path / "dangling": "exists and is not a directory",
        tmp_path / "file" / "below": "cannot be written",
        Path("/proc/nothing"): "cannot be written: /proc",
    }.items():
        assert reason in str(why_not_replaceable(place, "a thing", KNOWN)), place


def test_a_foreign_file_is_one_that_is_not_of_its_format(tmp_path: Path) -> None:
    filled(tmp_path / "a", sign="ours", thesis__txt="beside it, and not in the way")
    filled(tmp_path / "b", sign="theirs")
    assert foreign_file(tmp_path / "absent", {"sign": read_sign}) is None
    assert foreign_file(tmp_path / "a", {"sign": read_sign}) is None
    assert foreign_file(tmp_path / "b", {"sign": read_sign}) == tmp_path / "b" / "sign"
    if hasattr(os, "mkfifo"):  # it is not waited for
        os.mkfifo(tmp_path / "pipe")
        assert foreign_file(tmp_path, {"pipe": read_sign}) == tmp_path / "pipe"


@pytest.mark.parametrize("swaps", [True, False])
def test_a_directory_takes_the_place_of_an_older_one_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: object())  # a system without the call
    filled(tmp_path / "real", old="1")
    (tmp_path / "link").symlink_to("real")
    for target in (tmp_path / "new" / "deep", tmp_path / "real", tmp_path / "link"):
        with replacing_folder(target) as folder:
            (folder / "a").write_text("2")
        assert contents(target) == {"a": "2"}
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "new", "real"]


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("at", ["fill", "first rename", "second rename"])
def test_whatever_interrupts_it_the_older_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool, at: str
) -> None:
    if not swaps:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: object())
    target, rename = filled(tmp_path / "target", old="1"), Path.rename

    def interrupted(self: Path, place: Path) -> Path:
        if (at, self.name) in (("first rename", "target"), ("second rename", "new")):
            if at == "first rename":
                rename(self, place)  # Ctrl-C arrives after the call, before the next one
            raise KeyboardInterrupt
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", interrupted)
    try:
        with replacing_folder(target) as folder:
            (folder / "a").write_text("2")
            if at == "fill":
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert contents(target) == {"old": "1"}
    else:
        assert swaps  # there is no moment between two renames
        assert contents(target) == {"a": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_files_are_replaced_together_or_not_at_all(tmp_path: Path) -> None:
    write_texts(tmp_path / "new", {"a": "1\r\n", "b": "2"})
    assert (tmp_path / "new" / "a").read_bytes() == b"1\r\n"
    with suppress(KeyboardInterrupt), replacing_files(tmp_path / "new") as scratch:
        (scratch / "a").write_text("3")
        raise KeyboardInterrupt
    assert contents(tmp_path / "new") == {"a": "1\n", "b": "2"}
    with replacing_files(tmp_path / "new") as scratch:
        (scratch / "b").write_text("4")
    assert contents(tmp_path / "new") == {"a": "1\n", "b": "4"}


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")
    with whole_file(path) as file:
        file.write(b"after")
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    with suppress(KeyError), whole_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_bytes() == b"after"
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs file size limits as Linux has them")
def test_a_full_disk_leaves_the_older_files(tmp_path: Path) -> None:
    write_texts(tmp_path, {"a": "old"})
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from clipmole.plumbing.files import write_texts\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_texts(Path(sys.argv[1]), {'0': 'fits', 'a': 'x' * 5000})\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "File too large"
    assert contents(tmp_path) == {"a": "old"}


class Trickle(io.BytesIO):
    """Gives less than it is asked for, as a pipe does."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(3, size or 0))


@pytest.mark.parametrize(("most", "read"), [(0, b""), (7, b"0123456"), (10, b"0123456789"), (99, b"0123456789")])
def test_no_more_is_read_of_a_stream_than_is_asked_for(most: int, read: bytes) -> None:
    stream = Trickle(b"0123456789")
    assert read_at_most(stream, most) == read
    assert stream.tell() == len(read)


def test_the_nearest_folder_that_exists_is_the_path_itself_or_one_above_it(tmp_path: Path) -> None:
    assert nearest_existing(tmp_path) == tmp_path.resolve()
    assert nearest_existing(tmp_path / "a" / "b" / "c") == tmp_path.resolve()
    (tmp_path / "link").symlink_to(tmp_path)
    assert nearest_existing(tmp_path / "link" / "a") == tmp_path.resolve()
