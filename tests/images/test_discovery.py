"""Single images of what somebody names: folders, links in them, and what programs leave beside images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clipmole.errors import ImageError, ImageNotFound, ImageNotRead
from clipmole.images import discovery
from clipmole.images.discovery import find_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names_below(folder: Path) -> list[str]:
    found = list(find_images([str(folder)]))
    assert not [each for each in found if isinstance(each, ImageError)]
    return [os.path.relpath(str(each), folder) for each in found]


def test_what_programs_leave_beside_images_is_passed_over_and_said_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "._a.jpg", "b/._b.png", "b/b.png", "__MACOSX/b/c.png", "b/.ipynb_checkpoints/b.png")
    touch(tmp_path, "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "b/@eaDir/b.png")
    said: list[str] = []
    found = list(find_images([str(tmp_path), str(tmp_path / "._a.jpg")], said.append))
    assert found == [str(tmp_path / name) for name in ("a.jpg", "b/b.png", "._a.jpg")]  # the last one by its name
    (line,) = said
    assert "2 ._*, 1 .ipynb_checkpoints, 2 @eaDir, 1 __MACOSX" in line
    said.clear()
    assert list(find_images([str(tmp_path / "a.jpg")], said.append)) == [str(tmp_path / "a.jpg")]
    assert said == []


def test_a_pattern_passes_over_what_it_does_not_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/b.jpg", "b/@eaDir/b.jpg/SYNO.jpg", "__MACOSX/c.jpg")
    said: list[str] = []
    every = find_images([str(tmp_path / "**" / "*.jpg")], said.append)
    # a folder called b.jpg matches the pattern, too
    assert list(every) == [str(tmp_path / "a.jpg"), str(tmp_path / "b" / "b.jpg")]
    assert "2 @eaDir, 1 __MACOSX" in said[0]
    assert list(find_images([str(tmp_path / "__MACOSX" / "*.jpg")])) == [str(tmp_path / "__MACOSX" / "c.jpg")]


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_folders_that_are_links_are_searched_once_and_never_in_a_circle(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    touch(root, "a.jpg", "own/b.jpg")
    touch(elsewhere, "c.jpg", "below/d.jpg")
    (root / "link").symlink_to(elsewhere)
    (root / "link-again").symlink_to(elsewhere / "below")
    (root / "to-own").symlink_to(root / "own")
    (root / "up").symlink_to(tmp_path)
    (elsewhere / "back").symlink_to(root)
    (elsewhere / "below" / "round").symlink_to(elsewhere)
    assert names_below(root) == ["a.jpg", "link/c.jpg", "link/below/d.jpg", "own/b.jpg"]


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_pattern_gives_each_image_once_and_never_goes_in_a_circle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.jpg", "b/c[1]/d.jpg", ".hidden/e.jpg", "b/.f.jpg")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "b")
    for name in ("round", "round-again", "b/back"):  # glob.glob would go 2^40 ways
        (tmp_path / name).symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for pattern in ("**/*.jpg", "**/*", "**", "**/**/*.jpg", "[ab]*/../**/?.jpg"):
        found = [os.path.normpath(str(each)) for each in find_images([pattern])]
        assert found == ["a.jpg", "b/c[1]/d.jpg"]
    assert list(find_images([f"{tmp_path}/**/c*/*"])) == [f"{tmp_path}/b/c[1]/d.jpg"]


def test_a_folder_that_goes_while_it_is_searched_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir = os.scandir

    def failing(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", path)
        if str(path).endswith("c"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scandir(path)

    monkeypatch.setattr(discovery.os, "scandir", failing)
    first, denied, gone = find_images([str(tmp_path)])
    assert first == str(tmp_path / "a" / "1.jpg")
    assert isinstance(denied, ImageNotFound)
    assert str(denied) == f"{tmp_path / 'b'}: cannot be searched: Permission denied"
    assert isinstance(gone, ImageNotRead)
    assert str(gone) == f"{tmp_path / 'c'}: cannot be searched: No such file or directory"


def test_a_folder_without_images_and_a_pattern_that_matches_nothing_are_errors(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "._only.jpg")
    folder, pattern = find_images([str(tmp_path), str(tmp_path / "*.png")])
    assert isinstance(folder, ImageNotFound)
    assert "no images in this folder" in str(folder)
    assert isinstance(pattern, ImageNotFound)
    assert "nothing matches this pattern" in str(pattern)
