"""Versions, hardware and date, which belong to every result.

In: nothing. Out: a dict. It knows nothing of what was measured.
"""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import PIL
import torch

import clipmole


def environment() -> dict[str, str | int]:
    """Versions, hardware and date, to be kept with a result; `gpu` if PyTorch has one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "clipmole": clipmole.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "platform": sys.platform,
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).date().isoformat(),
        **gpu,
    }
