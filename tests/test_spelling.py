"""Prose is in British spelling; code, and the names of others' things, keep theirs."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AMERICAN = re.compile(
    r"\b(?:(?:un|dis|re|de|multi)?(?:colors?|colored|coloring|grays?|grayscale|centers?|centered|neighbors?|"
    r"neighboring|behaviors?|favorites?|honored|labeled|labeling|canceled|canceling|modeled|modeling|judgments?|"
    r"fulfill|defense|toward)|\w+(?:al|at|ant|im|gn|er|or|ar|om|ut|ist|el|in|on|as|is|id)iz(?:e[sdr]?|ers|ing|ations?)|"
    r"(?:anal|catal)yz(?:e[sdr]?|ing))\b",
    re.IGNORECASE,
)
CODE = re.compile(r"`[^`]*`|https?://\S+|\{[^{}]*\}|(?<=\])\([^)]*\)|\w+[-_.=]\w+(?:[-_.=]\w+)*")
KEPT = {"authorization", "renormalize", "size", "sizes", "prize", "quantizelinear"}  # a header, a setting, an operator


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines: of Python comments, docstrings and messages, of Markdown all but blocks of code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
                yield from enumerate(token.string.splitlines(), token.start[0])
        return
    code = False
    for number, line in enumerate(text.splitlines(), 1):
        code ^= line.lstrip().startswith("```")
        if not code:
            yield number, line


def test_prose_is_in_british_spelling() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")]
    found = []
    for path in sorted([*pages, *(ROOT / "src").rglob("*.py")]):
        for number, line in prose(path):
            for word in AMERICAN.findall(CODE.sub(" ", line)):
                if word.lower() not in KEPT:
                    found.append(f"{path.relative_to(ROOT)}:{number}: {word}")
    assert not found
    assert AMERICAN.search("an equalized color")  # so it can fail
    assert not AMERICAN.search("an equalised colour of this size")
