import platform
import subprocess
import sys

import pytest

from clipmole.plumbing.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from clipmole.plumbing.allocator import keep_freed_memory
if "kept" in sys.argv:
    assert keep_freed_memory()
np.ones(2**25, np.uint8).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(2**25, np.uint8).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_was_freed_is_not_taken_from_the_system_again() -> None:
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, check=True).stdout)
        for word in ("kept", "given back")
    )
    assert kept < given_back / 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    assert not keep_freed_memory()
