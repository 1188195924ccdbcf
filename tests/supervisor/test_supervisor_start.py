"""How children begin, and what keeps them from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.supervisor.driver import REPOSITORY, Driver, child, gone
from tests.supervisor.targets import WAIT_S


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_begins_like_a_fresh_process(start: Callable[..., Driver], method: str) -> None:
    """Default signal handlers, nothing blocked, own group and name, no stdin, its environment."""
    spec = child("rank 0", "describe", restart=False, env={"DITMESH_TEST": "yes"})
    driver = start(spec, start_method=method, preload=["tests.supervisor.targets:remember"])

    assert driver.finish()[0] == 0
    [line] = [line for line in driver.lines if line.startswith("state ")]
    assert json.loads(line[6:]) == {
        "name": "rank 0",
        "leads_group": True,
        "default": {"SIGTERM": True, "SIGINT": True, "SIGHUP": True, "SIGCHLD": True},
        "blocked": 0,
        "wakeup_fd": -1,
        "stdin": "/dev/null",
        "env": "yes",
        "preloaded": method == "fork",  # a spawned child shares nothing, so nothing is preloaded
    }


def test_forked_child_spares_atexit_and_keeps_output(tmp_path: Path) -> None:
    """Functions registered before the fork run once, in the parent; buffered output is written."""
    marks = tmp_path / "marks"
    program = (
        "import atexit, os, sys\n"
        f"def mark(): open({str(marks)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "atexit.register(mark)\n"
        "from ditmesh.supervisor import ChildSpec, Supervisor\n"
        "print('parent', end=' ')\n"
        "code = Supervisor([ChildSpec('a', 'builtins:print', 'child', restart=False)]).run()\n"
        "print(os.getpid(), code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    pid = marks.read_text().strip()
    assert (done.stdout, done.stderr) == (f"parent child\n{pid} 0\n", "")


def test_error_in_the_supervisor_leaves_no_child(start: Callable[..., Driver]) -> None:
    """When a child cannot even be made, those that were are killed and the error is shown."""
    driver = start(
        child("a", "sleep", WAIT_S), child("b", "sleep", env={"": 1}), start_method="spawn"
    )
    code, err = driver.finish()
    assert code == 1
    assert "TypeError" in err
    assert len(driver.events("started")) == 1
    assert all(gone(event["pid"]) for event in driver.events("started"))


def test_threads_forbid_forking() -> None:
    """A preload that leaves a thread running is refused: a fork would copy locks it may hold."""
    program = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), name='stray', daemon=True).start()\n"
        "from ditmesh.supervisor import ChildSpec, Supervisor\n"
        "Supervisor([ChildSpec('a', 'builtins:print')]).run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 1
    assert "several threads: ['MainThread', 'stray']" in done.stderr
