"""The state of an unfinished training run on disk: one file, complete or not there.

In: tensors by name, and facts that JSON can hold. Out: the same, when read. The file is safetensors with the facts in
its header, written under another name and renamed, so after a kill or a full disk the older state is still there. It
knows nothing of networks or of what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipmole.errors import CheckpointError
from clipmole.plumbing.files import replacing_files
from clipmole.plumbing.json_toml import parse_json

FACTS, CHECKSUM = "clipmole", "sha256"  # keys of the header's metadata


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a state over an older one. If it raises `CheckpointError`, the older one is still there."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    metadata = {FACTS: text, CHECKSUM: state_sha256(on_cpu, text)}
    try:
        with replacing_files(path.parent) as folder:
            save_file(on_cpu, folder / path.name, metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}; free space") from error


def state_sha256(tensors: dict[str, Tensor], facts: str) -> str:
    """sha256 over the facts as they are written, and the names and bits of tensors, whatever order they come in."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state that was written last; None if there is none. Raises `CheckpointError` if it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        facts: dict[str, Any] = parse_json(metadata[FACTS])
        whole = CHECKSUM not in metadata or metadata[CHECKSUM] == state_sha256(
            tensors, metadata[FACTS]
        )  # older states have none
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged; delete it to begin the run anew") from error
    if not whole:
        raise CheckpointError(f"{path}: is damaged: it is not what was saved; delete it to begin the run anew")
    return tensors, facts
