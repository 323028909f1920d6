"""Put committed results into the documents that quote them.

    python benchmarks/insert_results.py [--check]

A document quotes a file between `<!-- file: PATH -->` and `<!-- /file -->`: as it is if PATH ends in .md, else
in a code block. With `--check` nothing is written, and the exit code is 1 if a document is not up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "MODEL_CARD.md",
    "docs/grow.md",
    "docs/performance.md",
    "docs/results.md",
    "docs/scan.md",
    "docs/serve.md",
    "src/clipmole/detectors/mole-vit-b-16/adapter/README.md",
)
QUOTE = re.compile(r"(<!-- file: (?P<path>\S+) -->\n).*?(<!-- /file -->)", re.DOTALL)


def filled(text: str) -> str:
    """`text` with every quote replaced by what its file holds now."""

    def quote(match: re.Match[str]) -> str:
        path = ROOT / match["path"]
        content = path.read_text(encoding="utf-8").rstrip("\n") + "\n"
        kind = {".py": "python", ".sql": "sql"}.get(path.suffix, "text")
        block = content if path.suffix == ".md" else f"```{kind}\n{content}```\n"
        return f"{match[1]}{block}{match[3]}"

    return QUOTE.sub(quote, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = False
    for name in DOCUMENTS:
        document = ROOT / name
        before = document.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            stale = True
            print(f"{name}: {'is not up to date' if check else 'updated'}", file=sys.stderr)
            if not check:
                document.write_text(after, encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
