"""Decoding processes: started apart from the current folder, watched, replaced."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from tiny import PREPROCESS, encoded, picture

pytest.importorskip("fastapi")

from clipmole.serve.decode_pool import DecodePool, DecoderStartFailed
from clipmole.serve.errors import ImageProblem
from clipmole.serve.settings import ServeSettings

Value = TypeVar("Value")

DIES_OF_A_WORD = """
import os, sys
from clipmole.serve.decode_worker import read_frame, write_frame
out = sys.stdout.buffer
write_frame(out, {"ready": True})
while (frame := read_frame(sys.stdin.buffer)) is not None:
    write_frame(out, {"begun": True})
    if frame[1] == b"deadly":
        os._exit(1)
    write_frame(out, {"error": {"code": "unreadable", "message": "it is " + frame[1].decode()}})
"""


def with_pool(use: Callable[[DecodePool], Awaitable[Value]], command: tuple[str, ...] | None = None) -> Value:
    """What `use` makes of a pool of one process."""
    restarted: list[str] = []

    async def run() -> Value:
        options = {} if command is None else {"command": command}
        pool = DecodePool(ServeSettings(workers=1), PREPROCESS, restarted.append, **options)
        try:
            await pool.start()
            return await use(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


def test_a_module_in_the_current_folder_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("numpy", "PIL", "json", "clipmole"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    decoded = with_pool(lambda pool: pool.decode(encoded(picture(0, 48, 40))))
    assert (decoded.crops.width, decoded.crops.height) == (48, 40)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("program", "reason"),
    [("raise ValueError('no such thing')", "ValueError: no such thing"), ("pass", "exit code 0 and wrote nothing")],
)
def test_a_process_that_does_not_start_says_why(program: str, reason: str) -> None:
    async def never(_: DecodePool) -> None:
        pytest.fail("it started")

    with pytest.raises(DecoderStartFailed, match=reason):
        with_pool(never, (sys.executable, "-P", "-c", program))


def test_an_image_that_kills_its_process_is_tried_once_and_the_next_is_answered() -> None:
    async def use(pool: DecodePool) -> list[tuple[str, str]]:
        found = []
        for data in (b"deadly", b"harmless"):
            with pytest.raises(ImageProblem) as raised:
                await pool.decode(data)
            found.append((raised.value.code, raised.value.message))
        return found

    first, second = with_pool(use, (sys.executable, "-P", "-c", DIES_OF_A_WORD))
    assert first[0] == "decoder_crashed"
    assert second == ("unreadable", "it is harmless")
