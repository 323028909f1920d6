"""Labels and splits as sources write them -> as they are written here.

In: a label of a table or a shard, the name of a split, shard or table. Out: 1 = AI-generated, 0 =
photograph; train, val, calibration, test. It never guesses: an unknown label is an error that names the cure.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from clipmole.data.sample import Sample
from clipmole.errors import DataError

SPLITS = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "calibration": "calibration", "test": "test",
}  # fmt: skip
"""The name of a split in folders, shards and tables -> its name here."""

REAL = frozenset({"0", "real", "photo", "photograph", "nature", "natural", "human", "authentic", "camera", "0_real"})
AI = frozenset({"1", "fake", "ai", "ai-generated", "ai_generated", "generated", "synthetic", "artificial", "1_fake"})


def read_label(value: object, where: str, ai: Collection[str] = ()) -> int:
    """1 if `value` means AI-generated, 0 if it means a photograph.

    Args:
        value: a number, or a word in any case.
        where: its position, for the message of an error.
        ai: the values that mean AI-generated, any other is a photograph; (): the usual words.

    Raises `DataError` for any other value, for nothing, and for True and False, whose meaning is the source's own.
    """
    text = "" if value is None else str(value).strip().lower()
    if not text:
        raise DataError(f"{where}: the label is empty")
    if ai:
        return int(text in {each.strip().lower() for each in ai})
    if text in REAL:
        return 0
    if text in AI:
        return 1
    raise DataError(
        f"{where}: label {str(value)!r}: not a word for a photograph (0, real, photo, ...) or an AI-generated image "
        "(1, fake, ai, ...); say which values mean AI-generated: ?ai=..."
    )


def split_in_name(name: str, otherwise: str) -> str:
    """The split that a shard's or table's name begins with, as in "train-00000-of-00002.tar"; else `otherwise`."""
    first = re.match(r"[a-z]+", name.lower())
    return SPLITS.get(first.group(), otherwise) if first else otherwise


def without_lone_train(samples: Sequence[Sample], unsplit: str) -> list[Sample]:
    """The samples; of split `unsplit` if all are of split train, as tables and shards without splits are."""
    if {sample.split for sample in samples} != {"train"}:
        return list(samples)
    return [sample.model_copy(update={"split": unsplit}) for sample in samples]
