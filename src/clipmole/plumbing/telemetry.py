"""No telemetry: libraries that would report their use to their makers are kept from it.

In: nothing. Out: nothing. A process of clipmole's own calls `switch_off` first, and what it starts inherits that.
Where clipmole is a library in somebody's process, it imports and uses such a library in `without_telemetry` alone,
which leaves environment variables and modules as they were. It knows nothing of what the libraries do.

OpenVINO and NNCF ask for `openvino_telemetry`, and do without where it is not installed. It sends events to a server
of Google's when it is imported and used, and writes a client's number to the home folder. ONNX Runtime from 1.29 on
does the same with a server of Microsoft's, from code of its own, unless a variable is set when it is imported.
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
    """Switch telemetry off for this process and those that it starts; for a process that is clipmole's own."""
    os.environ.update(VARIABLES)
    sys.modules[MODULE] = None  # type: ignore[assignment]  # as if it were not installed


@contextmanager
def without_telemetry() -> Iterator[None]:
    """In the block `openvino_telemetry` cannot be imported, and `VARIABLES` are set, so that libraries do without.

    It is too late for a library that the host has imported with it before: then the host has let it report.
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
    """Variables that are not set are set for as long as the block lasts, and what is started in it inherits them."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
