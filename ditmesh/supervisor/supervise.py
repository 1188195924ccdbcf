"""The loop of a supervisor: wait for a signal or a date, then start, stop, kill or reap."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ditmesh.supervisor.children import (
    MISCONFIGURED,
    ChildSpec,
    ended_children,
    fork,
    kill_group,
    resolve,
    spawn,
)
from ditmesh.supervisor.signals import STOP_SIGNALS, Pipe, read_signals, wakeup_pipe

FIRST_DELAY_S: Final = 0.1
"""Pause before the first restart; every further one is twice as long."""
LONGEST_DELAY_S: Final = 5.0
"""The longest pause before a restart."""
SETTLED_S: Final = 10.0
"""A child that lived this long is restarted after the first, short pause again, and counts as one
that can run as it is configured."""

EventKind = Literal["started", "ended", "stopping", "killed"]


@dataclass(frozen=True)
class ChildEvent:
    """Something that happened to a child.

    `code` is the exit code of a child that ended, 128 + n when signal n ended it. `delay_s` is the
    pause before its restart, None when there will be none. `stops_all`: its end is why all stop.
    """

    kind: EventKind
    child: str
    pid: int
    code: int | None = None
    delay_s: float | None = None
    stops_all: bool = False


def tell(event: ChildEvent) -> None:
    """Say on stderr what a child did that it should not; for `Supervisor`'s `on_event`."""
    if event.kind == "ended" and event.delay_s is not None:
        words = f"ended with code {event.code}; starting it again in {event.delay_s:g} s"
    elif event.stops_all and event.code == MISCONFIGURED:
        words = "cannot run as it is configured; stopping"
    elif event.kind == "killed":
        words = "did not stop in time and was killed"
    else:
        return
    # The time as the children's own logs have it; logging is for these to set up.
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    print(f"{now} supervisor: {event.child} {words} (process {event.pid})", file=sys.stderr)


@dataclass
class Backoff:
    """Pauses between restarts: 0.1 s, doubled each time to 5 s, short again after 10 s of life."""

    _next_s: float = FIRST_DELAY_S

    def after(self, lived_s: float) -> float:
        """Seconds to wait before the restart of a child that lived for `lived_s` seconds."""
        delay = FIRST_DELAY_S if lived_s >= SETTLED_S else self._next_s
        self._next_s = min(2 * delay, LONGEST_DELAY_S)
        return delay


@dataclass
class _Child:
    spec: ChildSpec
    backoff: Backoff = field(default_factory=Backoff)
    pid: int | None = None
    started_at: float = 0.0
    start_at: float | None = 0.0  # when it is due to be started; None: not at all
    settled: bool = False  # whether an earlier life lasted SETTLED_S


class Supervisor:
    """Runs `children` until a signal or the end of one that is not restarted.

    That is one without `restart`, and one that says by its exit code that it is MISCONFIGURED: to
    start it again would not help, and the others are configured alike. Of a child that ran for 10 s
    before, it is not believed.

    start_method: "fork" on CPU, "spawn" on CUDA.
    preload: modules to import, or "module:function" to call, once before the first fork.
    grace_s: seconds between SIGTERM and SIGKILL when stopping.
    on_event: called in the parent with every `ChildEvent`; must not block.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec],
        *,
        start_method: Literal["fork", "spawn"] = "fork",
        preload: Sequence[str] = (),
        grace_s: float = 10.0,
        on_event: Callable[[ChildEvent], None] | None = None,
    ) -> None:
        names = [spec.name for spec in children]
        if len(set(names)) != len(names):
            raise ValueError(f"names of children must differ, got {names}")
        self._children = [_Child(spec) for spec in children]
        self._start_method = start_method
        self._preload = preload
        self._grace_s = grace_s
        self._on_event = on_event or (lambda event: None)
        self._stopping = False
        self._kill_at: float | None = None
        self._exit_code = 0

    def run(self) -> int:
        """Blocks until all is stopped; returns the exit code for this process.

        0 after SIGTERM, SIGINT or SIGHUP; the code of a child that is not restarted, when it ends
        first. A second SIGINT kills at once what still runs. Must be called on the main thread of
        a process that has no other children: it reaps every child there is, as process 1 must.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a supervisor must run on the main thread")
        with wakeup_pipe() as pipe:
            try:
                self._prepare()
                while not self._finished():
                    self._handle_signals(read_signals(pipe, self._timeout()))
                    self._reap()
                    self._kill_overdue()
                    self._start_due(pipe)
            finally:
                self._kill_all()
                gc.unfreeze()  # what is frozen at exit counts as leaked in extension modules
        return self._exit_code

    def _prepare(self) -> None:
        if self._start_method == "spawn":
            return
        for name in self._preload:
            if ":" in name:
                resolve(name)()
            else:
                importlib.import_module(name)
        if threading.active_count() > 1:
            names = sorted(thread.name for thread in threading.enumerate())
            raise RuntimeError(f"cannot fork from a process with several threads: {names}")
        gc.collect()
        gc.freeze()  # so that collections in the children do not copy the pages they share

    def _finished(self) -> bool:
        return self._stopping and all(child.pid is None for child in self._children)

    def _timeout(self) -> float | None:
        """Seconds until something is due; None when only a signal can bring news."""
        due = [child.start_at for child in self._children if child.start_at is not None]
        if self._kill_at is not None:
            due.append(self._kill_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _start_due(self, pipe: Pipe) -> None:
        for child in self._children:
            now = time.monotonic()
            if child.start_at is not None and child.start_at <= now:
                if self._start_method == "fork":
                    child.pid = fork(child.spec, pipe)
                else:
                    child.pid = spawn(child.spec)
                child.started_at, child.start_at = now, None
                self._tell("started", child)

    def _handle_signals(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._stopping and number == signal.SIGINT:
                self._kill_at = time.monotonic()
            elif not self._stopping and number in STOP_SIGNALS:
                self._stop(0)

    def _stop(self, exit_code: int) -> None:
        self._stopping = True
        self._exit_code = exit_code
        self._kill_at = time.monotonic() + self._grace_s
        for child in self._children:
            child.start_at = None
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)
                self._tell("stopping", child)

    def _reap(self) -> None:
        for pid, code in ended_children():
            child = next((child for child in self._children if child.pid == pid), None)
            if child is not None:
                kill_group(pid)  # before it is reaped: until then nobody else can have its id
            os.waitpid(pid, 0)
            if child is not None:
                self._ended(child, code)

    def _ended(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        lived_s = now - child.started_at
        # What ran with these options can run: its GPU may still be taken by its predecessor.
        misconfigured = code == MISCONFIGURED and not child.settled
        child.settled = child.settled or lived_s >= SETTLED_S
        restart = child.spec.restart and not misconfigured
        delay = None
        if restart and not self._stopping:
            delay = child.backoff.after(lived_s)
            child.start_at = now + delay
        stops_all = not restart and not self._stopping
        self._tell("ended", child, code=code, delay_s=delay, stops_all=stops_all)
        child.pid = None
        if stops_all:
            self._stop(code)

    def _kill_overdue(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = None
        for child in self._children:
            if child.pid is not None:
                kill_group(child.pid)
                self._tell("killed", child)

    def _kill_all(self) -> None:
        """Leaves no child behind when `run` ends by an exception."""
        for child in self._children:
            if child.pid is not None:
                kill_group(child.pid)
                os.waitpid(child.pid, 0)
                child.pid = None

    def _tell(
        self,
        kind: EventKind,
        child: _Child,
        code: int | None = None,
        delay_s: float | None = None,
        stops_all: bool = False,
    ) -> None:
        if child.pid is not None:
            self._on_event(ChildEvent(kind, child.spec.name, child.pid, code, delay_s, stops_all))
