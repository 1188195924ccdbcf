"""Starting one child process, by fork or spawn, and what it does before its work begins."""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from ditmesh.supervisor.signals import HANDLED, Pipe

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
MISCONFIGURED: Final = 2
"""Exit code of a child that can never run as it is configured; it has said why. It ends so at its
start."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class ChildSpec:
    """One child process.

    `target` is "package.module:function", resolved in the child and called with `args`; what it
    returns is the exit code (None means 0). `args` must be picklable where children are spawned.
    `env` is added to the environment of the child. With `restart`, the child is started again
    whenever it ends, unless it is MISCONFIGURED and never ran well; without, its end stops all
    children and its exit code becomes the result.
    """

    name: str
    target: str
    args: Any = None
    restart: bool = True
    env: Mapping[str, str] = field(default_factory=dict)


def ended_children() -> Iterator[tuple[int, int]]:
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


def kill_group(pid: int) -> None:
    """Kills a child that is not reaped yet, and all that it left in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def fork(spec: ChildSpec, pipe: Pipe) -> int:
    """Forks a child; returns its pid, in the parent only."""
    supervisor = os.getpid()
    sys.stdout.flush()  # or what is buffered would be written twice
    sys.stderr.flush()
    # A signal to the child must not run the parent's handlers there: they share the pipe.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if pid == 0:
            _forked(spec, supervisor, pipe, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)  # here and in the child: whoever comes first
    return pid


def _forked(spec: ChildSpec, supervisor: int, pipe: Pipe, mask: set[int]) -> NoReturn:
    """A forked child's whole life. `os._exit` spares it the parent's atexit functions."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        os.close(pipe[0])
        os.close(pipe[1])
        os.setpgid(0, 0)
        for number in HANDLED:
            signal.signal(number, signal.SIG_DFL)
        # A Ctrl-C that came before setpgid was meant for the supervisor: ignoring discards it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _die_with(supervisor)
        os.environ.update(spec.env)
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


def spawn(spec: ChildSpec) -> int:
    """Starts a child as a fresh interpreter, its spec on stdin; returns its pid."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; "
        f"from ditmesh.supervisor import children; children.spawned({os.getpid()})"
    )
    with tempfile.TemporaryFile() as file:
        pickle.dump(spec, file)
        file.seek(0)
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", program],
            {**os.environ, **spec.env},
            file_actions=[(os.POSIX_SPAWN_DUP2, file.fileno(), 0)],
            setpgroup=0,
            setsigmask=(),
            setsigdef=HANDLED,
        )


def spawned(supervisor: int) -> NoReturn:
    """A spawned child's whole life; stdin holds its spec."""
    _die_with(supervisor)
    sys.exit(_run_target(pickle.load(sys.stdin.buffer)))


def _run_target(spec: ChildSpec) -> int:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_NAME, spec.name.encode()[:15], 0, 0, 0)
    return int(resolve(spec.target)(spec.args) or 0)


def _die_with(supervisor: int) -> None:
    """Has the kernel kill this process when the supervisor's main thread, so itself, ends."""
    if _LIBC is None:
        return
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def resolve(target: str) -> Callable[..., Any]:
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
