"""No telemetry: libraries that would report their use to their makers are kept from doing so.

In: nothing. Out: nothing. A process of clipmole's own calls `switch_off` first, and its child processes inherit that.
In somebody else's process, clipmole imports and uses such a library only within `without_telemetry`, which leaves
environment variables and modules as they were. It knows nothing of what the libraries do.

OpenVINO and NNCF import `openvino_telemetry` if it is installed. It sends events to a server of Google when it is
imported and used, and writes a client identifier to the home folder. ONNX Runtime, from 1.29, sends events to a server
of Microsoft with code of its own, unless a variable is set when it is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

VARIABLES = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, datasets, transformers
    "RAY_USAGE_STATS_ENABLED": "0",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime, docs/Privacy.md
}
MODULE = "openvino_telemetry"


def switch_off() -> None:
    """Switch telemetry off for this process, which must be clipmole's own, and for those that it starts."""
    os.environ.update(VARIABLES)
    sys.modules[MODULE] = None  # type: ignore[assignment]  # as if it were not installed


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Within the block `openvino_telemetry` cannot be imported, and `VARIABLES` are set, so libraries send nothing.

    It has no effect on a library that the host imported before: the host then allows the reports.
    """
    absent = MODULE not in sys.modules
    if absent:
        sys.modules[MODULE] = None  # type: ignore[assignment]
    try:
        with environment_variables(VARIABLES):
            yield
    finally:
        if absent:
            sys.modules.pop(MODULE, None)


@contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set those of the variables that are not set yet, within the block; processes started in it inherit them."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
