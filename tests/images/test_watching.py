"""Watching a folder: an image comes out once, when it is whole, and again when it has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipmole.errors import DataError
from clipmole.images import watching
from clipmole.images.watching import new_images


class Clock:
    """Time that passes only where the watcher sleeps; what `at` holds for a moment happens then."""

    def __init__(self, at: dict[float, Callable[[], object]]) -> None:
        self.now, self.at = 0.0, dict(at)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for moment in sorted(moment for moment in self.at if moment <= self.now):
            self.at.pop(moment)()


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[float, str]]]:
    """Seconds and names of what comes out in twenty seconds, while things happen in the folder."""

    def watch(at: dict[float, Callable[[], object]], **options: object) -> list[tuple[float, str]]:
        clock = Clock(at)
        monkeypatch.setattr(watching, "time", clock)
        found: Iterator[str] = new_images(str(tmp_path), stopping=lambda: clock.now >= 20, **options)  # type: ignore[arg-type]
        return [(clock.now, os.path.relpath(path, tmp_path)) for path in found]

    return watch


def test_a_file_comes_out_once_it_has_not_changed_for_a_while(
    tmp_path: Path, watched: Callable[..., list[tuple[float, str]]]
) -> None:
    def grow(text: str) -> Callable[[], object]:
        return lambda: (tmp_path / "new.jpg").open("a").write(text)

    (tmp_path / "old.jpg").write_text("there before")
    assert watched({3: grow("a"), 4: grow("b"), 6: grow("c")}) == [(8.0, "new.jpg")]


def test_folders_below_are_watched_and_what_programs_have_not_finished_is_not(
    tmp_path: Path, watched: Callable[..., list[tuple[float, str]]]
) -> None:
    def come() -> None:
        (tmp_path / "below").mkdir()
        (tmp_path / "below" / "B.PNG").write_text("b")
        for name in (".hidden.png", "a.jpg.part", "notes.txt"):
            (tmp_path / name).write_text("x")
        for folder in ("@eaDir", "__MACOSX"):  # previews and copies
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.png").write_text("x")
        (tmp_path / "empty.png").touch()
        (tmp_path / "away.png").symlink_to(tmp_path / "nowhere")

    assert watched({2: come}) == [(4.0, os.path.join("below", "B.PNG"))]


def test_a_file_that_is_replaced_or_comes_back_comes_out_again(
    tmp_path: Path, watched: Callable[..., list[tuple[float, str]]]
) -> None:
    path, other = tmp_path / "a.png", tmp_path / "a.tmp"
    path.write_text("first")
    other.write_text("other")
    happens = {5: lambda: other.replace(path), 10: path.unlink, 12: lambda: path.write_text("third")}
    assert watched(happens, existing=True) == [(2.0, "a.png"), (7.0, "a.png"), (14.0, "a.png")]


def test_a_folder_that_fails_for_a_while_does_not_give_its_images_again(
    tmp_path: Path, watched: Callable[..., list[tuple[float, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a.png").write_text("a")
    scandir, failing = os.scandir, set[str]()

    def failing_scandir(path: str) -> object:
        if str(path) in failing:
            raise OSError(5, "Input/output error", str(path))
        return scandir(path)

    monkeypatch.setattr(watching.os, "scandir", failing_scandir)
    happens = {5: lambda: failing.add(str(tmp_path / "below")), 9: failing.clear}
    assert watched(happens, existing=True) == [(2.0, os.path.join("below", "a.png"))]
    failing.add(str(tmp_path))
    with pytest.raises(DataError, match="cannot be searched: Input/output error; watch a folder that you may read"):
        new_images(str(tmp_path))


def test_a_folder_that_is_not_there_or_goes_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in\nbox"
    with pytest.raises(DataError, match=r"in\\u000abox: there is no such folder to watch"):
        new_images(str(folder))
    folder.mkdir()
    (folder / "a.png").write_text("a")
    paths = new_images(str(folder), interval=0.01, settle=0, existing=True)
    assert next(paths) == str(folder / "a.png")
    (folder / "a.png").unlink()
    folder.rmdir()
    with pytest.raises(DataError, match="no such folder"):
        next(paths)


def test_it_ends_soon_after_somebody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.01)
    asked = [False, False, True]
    began = time.monotonic()
    assert list(new_images(str(tmp_path), interval=0.01, stopping=lambda: asked.pop(0))) == []
    assert time.monotonic() - began < 5
    asked = [False, True]
    assert list(new_images(str(tmp_path), interval=3600, stopping=lambda: asked.pop(0))) == []
    assert time.monotonic() - began < 60
