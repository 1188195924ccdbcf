"""What holds for every test, whatever else the machine does meanwhile.

With `pytest -n 2`, as `make test` calls it, one worker has all tests that start clusters and groups
of processes, so that never two of these run at once and tests share them; the other has the rest.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
PROCESSES = {"chaos", "cli", "clients", "e2e", "gpu_node"}
"""Folders whose tests start clusters and groups, or listen where such do."""
ALONE = {"test_parallel_setup.py"}
"""Modules in them that start one process at a time."""

# Before torch is imported: its threads wait for one another by spinning, which takes many times as
# long as one thread alone when something else has a core. What tests compute is small.
os.environ["OMP_NUM_THREADS"] = "1"

# Whoever starts tests in the background has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No time limit per example: the machine may be busy with ranks.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Hands out whole folders: tests of one share fixtures and follow on one another."""
    from xdist.scheduler import LoadScopeScheduling

    class Folders(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.split("::")[0])
            return "processes" if _starts_groups(path) else path.parts[1]

    config.option.loadscopereorder = False  # in order of collection, not by number of tests
    return Folders(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first."""
    items.sort(key=lambda item: not _starts_groups(item.path.relative_to(HERE.parent)))


def _starts_groups(path: Path) -> bool:
    """Whether the tests of a module, by its path from the root, start clusters or groups."""
    return path.parts[1] in PROCESSES and path.name not in ALONE
