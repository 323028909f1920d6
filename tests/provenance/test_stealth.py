"""Text in the lowest bits of an alpha channel: found as programs hide it, bounded, and not seen where there is none."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image
from tiny import picture

from clipmole.provenance import read_provenance
from clipmole.provenance.budget import Budget
from clipmole.provenance.stealth import hidden_text

WEBUI = "a cat\nNegative prompt: blurry\nSteps: 30, Sampler: Euler a, CFG scale: 4, Seed: 1, Size: 512x512"


def hiding(text: str, packed: bool) -> bytes:
    """A PNG whose alpha hides a text: bit by bit down the columns, as the extension for WebUI writes it."""
    content = gzip.compress(text.encode()) if packed else text.encode()
    mark = b"stealth_pngcomp" if packed else b"stealth_pnginfo"
    bits = np.unpackbits(np.frombuffer(mark + struct.pack(">I", 8 * len(content)) + content, np.uint8))
    alpha = np.full((400, 400), 254, np.uint8)
    columns = alpha.T.reshape(-1).copy()
    columns[: len(bits)] |= bits
    pixels = np.dstack([np.asarray(picture(0, 400, 400)), columns.reshape(400, 400).T])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
def test_a_hidden_text_is_read_and_weighed_as_any_other(packed: bool) -> None:
    data = hiding(WEBUI, packed)
    assert hidden_text(data, None, Budget()) == WEBUI
    assert [(f.points_to, f.strength) for f in read_provenance(data).findings] == [("ai-generated", "strong")]


def test_a_hidden_bomb_is_left_out() -> None:
    budget = Budget()
    assert hidden_text(hiding("a" * 2**24, True), None, budget) == ""


def test_alpha_without_a_text_says_nothing() -> None:
    buffer = io.BytesIO()
    picture(0).convert("RGBA").save(buffer, "PNG")
    assert hidden_text(buffer.getvalue(), None, Budget()) == ""
