"""The state of an unfinished training run on disk: one file, whole or not there.

In: tensors by name, and facts that JSON can hold. Out: the same again. The file is safetensors with the facts in its
header, written under another name and renamed, so a kill or a full disk leaves the state that was there. It knows
nothing of networks or of what the tensors mean.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipmole.errors import CheckpointError

FACTS = "clipmole"  # key of the header's metadata


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a state in the place of an older one. Raises `CheckpointError`, and then the older one is still there."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, partial, metadata={FACTS: json.dumps(facts)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written: {error}; free space") from error


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state that was written last; None if there is none. Raises `CheckpointError` if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            facts: dict[str, Any] = json.loads(file.metadata()[FACTS])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged; delete it to begin the run anew") from error
    return tensors, facts
