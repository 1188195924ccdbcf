"""The limit on open files."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource
from ditmesh import open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(open_files.allow_most(), resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others may refuse what Linux allows")
def test_a_process_allows_itself_what_it_may() -> None:
    """The soft limit becomes the hard one."""
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n"
