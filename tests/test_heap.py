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


_BENEATH = """
import re, sys
from pathlib import Path
from ditmesh import heap

def data():
    return int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

assert heap.keep_freed(int(sys.argv[1]))
before = data()
blocks = [bytearray(16 << 20) for _ in range(6)]
above = bytearray(100_000)
del blocks
print(data() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_who_is_to_keep_little_keeps_little_beneath_what_is_in_use_as_well() -> None:
    """A process with a limit on its memory has to have what it freed for what comes next."""
    assert _grown_by(512 << 20) > 90 << 20
    assert _grown_by(4 << 20) < 16 << 20


def _grown_by(kept_bytes: int) -> int:
    command = [sys.executable, "-c", _BENEATH, str(kept_bytes)]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)


def _faults(how: str) -> int:
    command = [sys.executable, "-c", _ROUNDS, how]
    return int(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
