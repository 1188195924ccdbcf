"""What the children of these tests run, and what runs their supervisor."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ditmesh.supervisor import ChildEvent, ChildSpec, Supervisor, supervise

WAIT_S = 60.0
PR_SET_CHILD_SUBREAPER = 36
preloaded: list[int] = []


def sleep(seconds: float) -> int:
    """Ends with code 0 after a while, or by the default action of SIGTERM."""
    say(f"up {os.getpid()}")
    time.sleep(seconds)
    return 0


def leave(code: object) -> int:
    """Ends at once, with a code or by an exception."""
    if isinstance(code, str):
        raise RuntimeError(code)
    if isinstance(code, list):
        sys.exit(code[0])
    return int(str(code))


def leave_in_turn(args: list[Any]) -> int:
    """Ends at once, in each life with the next code of those in a file."""
    path = Path(args[0])
    code, *left = path.read_text().split()
    path.write_text(" ".join(left))
    return int(code)


def stop_on_term(name: str) -> int:
    """Ends in order on SIGTERM and says so; Ctrl-C would be told apart."""

    def on_term(*_: object) -> None:
        say(f"{name} stopped in order")
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_term)
    say(f"up {os.getpid()}")
    try:
        # In short naps: a signal that comes just before a sleep does not end it.
        for _ in range(int(WAIT_S / 0.05)):
            time.sleep(0.05)
    except KeyboardInterrupt:
        say(f"{name} interrupted")
    return 1


def ignore_term(_: object) -> int:
    """Outlives SIGTERM, and so does a process that it started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({WAIT_S})"])
    say(f"up {os.getpid()} {helper.pid}")
    time.sleep(WAIT_S)
    return 0


def describe(_: object) -> int:
    """Tells how this process was set up."""
    default = {
        name: signal.getsignal(getattr(signal, name))
        in (signal.SIG_DFL, signal.default_int_handler)
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGCHLD")
    }
    state = {
        "name": Path("/proc/self/comm").read_text().strip(),
        "leads_group": os.getpgrp() == os.getpid(),
        "default": default,
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup_fd": signal.set_wakeup_fd(-1),
        "stdin": os.readlink("/proc/self/fd/0"),
        "env": os.environ.get("DITMESH_TEST", ""),
        "preloaded": preloaded == [os.getppid()],
    }
    say("state " + json.dumps(state))
    return 0


def leave_orphan(_: object) -> int:
    """Leaves a grandchild outside its process group, which ends when it is told to."""
    program = (
        "import subprocess, sys; command = [sys.executable, '-c', 'import time; time.sleep(60)'];"
        "print('orphan', subprocess.Popen(command).pid)"
    )
    subprocess.run([sys.executable, "-c", program], start_new_session=True, check=True)
    time.sleep(WAIT_S)
    return 0


def remember() -> None:
    """A preload that marks the process it ran in."""
    preloaded.append(os.getpid())


def say(line: str) -> None:
    """One line, whole, whoever else writes."""
    os.write(1, f"{line}\n".encode())


def drive(text: str) -> None:
    """Runs a supervisor as the JSON says, printing its events."""
    options = json.loads(text)
    supervise.SETTLED_S = options.pop("settled_s", supervise.SETTLED_S)  # type: ignore[misc]
    children = [ChildSpec(**child) for child in options.pop("children")]
    if options.pop("adopt", False):  # orphans, as process 1 does
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def on_event(event: ChildEvent) -> None:
        say("event " + json.dumps({**asdict(event), "at": time.monotonic()}))

    sys.exit(Supervisor(children, on_event=on_event, **options).run())
