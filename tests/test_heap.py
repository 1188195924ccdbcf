"""Memory that is freed and used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

_ROUNDS = """
import resource, sys, threading
from ditmesh import heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(3):
        before = faults()
        blocks = [bytearray(b"1") * (16 << 20) for _ in range(6)]
        del blocks
    print(faults() - before)

if sys.argv[1] == "keep":
    assert heap.keep_freed()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_kept_memory_is_not_faulted_in_again() -> None:
    """On a thread too, the same blocks again cost next to no page faults; by itself, glibc gives
    them back to the system.
    """
    assert _faults("keep") * 10 < _faults("by itself")


def _faults(how: str) -> int:
    command = [sys.executable, "-c", _ROUNDS, how]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
