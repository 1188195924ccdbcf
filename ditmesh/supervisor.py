"""Runs a set of child processes and stands in for init: starts, restarts, stops and reaps them.

The parent imports everything once, then forks: eight nodes start in the time of one (import of
torch, diffusers and xfuser costs seconds a process). That is sound only as long as the parent owns
no thread, no gRPC object and no CUDA context, so the parent does nothing but wait. Where children
use CUDA they are spawned as fresh interpreters instead.

What holds for every child:

* It leads a process group of its own: Ctrl-C in a terminal reaches the supervisor only, which then
  sends one orderly SIGTERM.
* It dies with the supervisor, however that ends (`PR_SET_PDEATHSIG`, Linux only).
* Its stdin is /dev/null; stdout and stderr are the supervisor's.
* Whatever it leaves behind in its process group is killed when it ends.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

FIRST_DELAY_S: Final = 0.1
"""Pause before the first restart; every further one is twice as long."""
LONGEST_DELAY_S: Final = 5.0
"""The longest pause before a restart."""
SETTLED_S: Final = 10.0
"""A child that lived this long is restarted after the first, short pause again."""

_STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_HANDLED: Final = (*_STOP_SIGNALS, signal.SIGCHLD)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

_Pipe = tuple[int, int]  # reader, writer
EventKind = Literal["started", "ended", "stopping", "killed"]


@dataclass(frozen=True)
class ChildSpec:
    """One child process.

    `target` is "package.module:function", resolved in the child and called with `args`; what it
    returns is the exit code (None means 0). `args` must be picklable where children are spawned.
    `env` is added to the environment of the child. With `restart`, the child is started again
    whenever it ends; without, its end stops all children and its exit code becomes the result.
    """

    name: str
    target: str
    args: Any = None
    restart: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChildEvent:
    """Something that happened to a child.

    `code` is the exit code of a child that ended, 128 + n when signal n ended it. `delay_s` is the
    pause before its restart, None when there will be none.
    """

    kind: EventKind
    child: str
    pid: int
    code: int | None = None
    delay_s: float | None = None


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


class Supervisor:
    """Runs `children` until a signal or the end of one that is not restarted.

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
        with _wakeup_pipe() as pipe:
            try:
                self._prepare()
                while not self._finished():
                    self._handle_signals(_read_signals(pipe, self._timeout()))
                    self._reap()
                    self._kill_overdue()
                    self._start_due(pipe)
            finally:
                self._kill_all()
        return self._exit_code

    def _prepare(self) -> None:
        if self._start_method == "spawn":
            return
        for name in self._preload:
            if ":" in name:
                _resolve(name)()
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

    def _start_due(self, pipe: _Pipe) -> None:
        for child in self._children:
            now = time.monotonic()
            if child.start_at is not None and child.start_at <= now:
                if self._start_method == "fork":
                    child.pid = _fork(child.spec, pipe)
                else:
                    child.pid = _spawn(child.spec)
                child.started_at, child.start_at = now, None
                self._tell("started", child)

    def _handle_signals(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if self._stopping and number == signal.SIGINT:
                self._kill_at = time.monotonic()
            elif not self._stopping and number in _STOP_SIGNALS:
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
        for pid, code in _ended_children():
            child = next((child for child in self._children if child.pid == pid), None)
            if child is not None:
                _kill_group(pid)  # before it is reaped: until then nobody else can have its id
            os.waitpid(pid, 0)
            if child is not None:
                self._ended(child, code)

    def _ended(self, child: _Child, code: int) -> None:
        now = time.monotonic()
        delay = None
        if child.spec.restart and not self._stopping:
            delay = child.backoff.after(now - child.started_at)
            child.start_at = now + delay
        self._tell("ended", child, code=code, delay_s=delay)
        child.pid = None
        if not child.spec.restart and not self._stopping:
            self._stop(code)

    def _kill_overdue(self) -> None:
        if self._kill_at is None or time.monotonic() < self._kill_at:
            return
        self._kill_at = None
        for child in self._children:
            if child.pid is not None:
                _kill_group(child.pid)
                self._tell("killed", child)

    def _kill_all(self) -> None:
        """Leaves no child behind when `run` ends by an exception."""
        for child in self._children:
            if child.pid is not None:
                _kill_group(child.pid)
                os.waitpid(child.pid, 0)
                child.pid = None

    def _tell(
        self, kind: EventKind, child: _Child, code: int | None = None, delay_s: float | None = None
    ) -> None:
        if child.pid is not None:
            self._on_event(ChildEvent(kind, child.spec.name, child.pid, code, delay_s))


@contextmanager
def _wakeup_pipe() -> Iterator[_Pipe]:
    """A pipe that gets one byte, its number, for every signal that this module handles.

    Handlers and not a blocked mask with sigwait: libraries that were imported may have threads of
    their own, to which the kernel would deliver what the main thread blocks.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    handled = [
        number
        for number in _HANDLED
        if not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)  # nohup
    ]
    old_handlers = {number: signal.signal(number, lambda *_: None) for number in handled}
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader, writer
    finally:
        signal.set_wakeup_fd(old_fd)
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _read_signals(pipe: _Pipe, timeout_s: float | None) -> bytes:
    """Waits for signals; their numbers, or nothing when the time is over."""
    readable, _, _ = select.select([pipe[0]], [], [], timeout_s)
    return os.read(pipe[0], 4096) if readable else b""


def _ended_children() -> Iterator[tuple[int, int]]:
    """Pid and exit code of every child that ended and is not reaped; the caller reaps each."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        exited = found.si_code == os.CLD_EXITED
        yield found.si_pid, found.si_status if exited else 128 + found.si_status


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _fork(spec: ChildSpec, pipe: _Pipe) -> int:
    """Forks a child; returns its pid, in the parent only."""
    supervisor = os.getpid()
    sys.stdout.flush()  # or what is buffered would be written twice
    sys.stderr.flush()
    # A signal to the child must not run the parent's handlers there: they share the pipe.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    pid = os.fork()
    if pid == 0:
        _forked(spec, supervisor, pipe, mask)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # here too, for whoever comes first
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _forked(spec: ChildSpec, supervisor: int, pipe: _Pipe, mask: set[int]) -> NoReturn:
    """A forked child's whole life. `os._exit` spares it the parent's atexit functions."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        os.close(pipe[0])
        os.close(pipe[1])
        os.setpgid(0, 0)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        # A Ctrl-C that came before setpgid was meant for the supervisor: ignoring discards it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _die_with(supervisor)
        code = _run_target(spec)
    except SystemExit as ended:
        code = _exit_code(ended)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):  # a closed pipe must not keep the child alive
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _spawn(spec: ChildSpec) -> int:
    """Starts a child as a fresh interpreter, its spec on stdin; returns its pid."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from ditmesh import supervisor; supervisor._spawned({os.getpid()})"
    )
    with tempfile.TemporaryFile() as file:
        pickle.dump(spec, file)
        file.seek(0)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", program],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 0)],
            setpgroup=0,
            setsigmask=(),
            setsigdef=_HANDLED,
        )


def _spawned(supervisor: int) -> NoReturn:
    """A spawned child's whole life."""
    _die_with(supervisor)
    sys.exit(_run_target(pickle.load(sys.stdin.buffer)))


def _run_target(spec: ChildSpec) -> int:
    os.environ.update(spec.env)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_NAME, spec.name.encode()[:15], 0, 0, 0)
    return int(_resolve(spec.target)(spec.args) or 0)


def _die_with(supervisor: int) -> None:
    """Has the kernel kill this process when the supervisor's main thread, so itself, ends."""
    if _LIBC is None:
        return
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def _resolve(target: str) -> Callable[..., Any]:
    """The function that "package.module:function" names."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _exit_code(ended: SystemExit) -> int:
    """The exit code of a SystemExit, as the interpreter would read it."""
    if isinstance(ended.code, str):
        print(ended.code, file=sys.stderr)
        return 1
    return ended.code or 0
