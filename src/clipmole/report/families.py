"""How well a detector tells families of generators apart -> a summary, and a section of its page and its model card.

In: `Families`, which counts the answers. Out: text and blocks of a page. It measures nothing.
"""

from __future__ import annotations

import numpy as np

from clipmole.config import Families
from clipmole.report.page import Cell, Note, PageBlock, Section, Table, Value


def summary(families: Families) -> str:
    """How many of the answers for validation images were right, in a sentence or a few."""
    answers = [families.answers(i) for i in range(len(families.names))]
    images, (right, given) = sum(map(sum, families.confusion)), np.sum(answers, axis=0)
    untold = [name for name, (hits, said) in zip(families.names, answers, strict=True) if 2 * hits <= said]
    never = f" Never named, because not even half of such answers were right: {', '.join(untold)}." if untold else ""
    return (
        f"Of {images} generated validation images, equalised, {given} got a family of generators, and {right} of these "
        f"the right one. The strength of the regularisation was chosen on these images, so this looks too good.{never}"
    )


def family_section(families: Families) -> Section:
    """The confusion table, and what it does not show."""
    rows: list[tuple[Cell, ...]] = [
        (name, *(Value(f"{count}") for count in row))
        for name, row in zip([*families.names, "other generators"], families.confusion, strict=True)
    ]
    heads = ["true family", *families.names, "none named"]
    blocks: list[PageBlock] = [
        summary(families),
        Note(
            "A family is named beside the verdict AI-generated if its share is over a half. It never proves which "
            "generator made an image: a generator that is not listed gets the family that its image happens to be like."
        ),
        Table(
            "Validation images by their true family, in rows, and the family that was named, in columns", heads, rows
        ),
    ]
    return Section("families", "Families of generators", blocks)
