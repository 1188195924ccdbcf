"""Real processes as ranks: forked from a parent that has imported everything, as nodes are.

    with Ranks(4) as ranks:
        results = ranks.run(function, argument)  # function(rank, argument) in each process

`rank` is a `Rank`; what a function leaves on it is there for the next one. Functions and
arguments are pickled, so functions live at the top of a module.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from types import SimpleNamespace, TracebackType
from typing import Any, cast

import torch
from torch.distributed import TCPStore

TIMEOUT_S = 90.0
CONNECT_S = 30.0


@dataclass
class Rank:
    """One process's place, its client of the store, and whatever tests keep between calls."""

    rank: int
    world_size: int
    store: TCPStore
    kept: SimpleNamespace = field(default_factory=SimpleNamespace)


class RankFailed(AssertionError):
    """A rank raised or ended; its traceback is the message."""


class Ranks:
    """A number of rank processes and the store that they meet at, hosted by this process."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.gpu_node.parallel.preload"])
        self._store, port = host_store()
        self._pipes: list[Connection] = []
        self.processes = []
        for rank in range(world_size):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, world_size, port), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = TIMEOUT_S) -> list:
        """Call `function(rank, *args)` on every rank and return what each returned.

        Raises:
            RankFailed: a rank raised, ended or took too long.
        """
        everyone = range(self.world_size)
        self.start(function, *args)
        answers = self.collect(everyone, timeout_s=timeout_s)
        for rank, answer in answers.items():
            if isinstance(answer, BaseException):
                raise RankFailed(f"rank {rank}: {_told(answer)}")
        return [answers[rank] for rank in everyone]

    def start(self, function: Callable[..., Any], *args: Any, ranks: Iterable[int] = ()) -> None:
        """Have `ranks` (all, if none are named) begin to call `function`; `collect` waits."""
        message = pickle.dumps((function, args))
        for rank in list(ranks) or range(self.world_size):
            self._pipes[rank].send_bytes(message)

    def collect(self, ranks: Iterable[int], *, timeout_s: float = TIMEOUT_S) -> dict[int, Any]:
        """What each of `ranks` returned or raised, in the order in which they finished."""
        waiting = {self._pipes[rank]: rank for rank in ranks}
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + timeout_s
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RankFailed(f"ranks {sorted(waiting.values())} took over {timeout_s} s")
            for pipe in cast(list[Connection], ready):
                rank = waiting.pop(pipe)
                try:
                    answers[rank] = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    answers[rank] = RankFailed("the process ended")
        return answers

    def wait_for(self, key: str, count: int, *, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until ranks have counted so far under a key of the store."""
        deadline = time.monotonic() + timeout_s
        while self._store.add(key, 0) < count:
            if time.monotonic() > deadline:
                raise RankFailed(f"{key!r} did not reach {count} in {timeout_s} s")
            time.sleep(0.02)

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank's process."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def close(self) -> None:
        """End every process, stopped ones included."""
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.kill()
            process.join()

    def __enter__(self) -> Ranks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list:
    """Call `function(rank, *args)` once in each of `world_size` fresh processes."""
    with Ranks(world_size) as ranks:
        return ranks.run(function, *args)


def host_store() -> tuple[TCPStore, int]:
    """A store of our own, on a free port of the loopback only, and its port.

    Given a host and a port, TCPStore listens on every interface; given a socket, on that one.
    """
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, port


def _serve(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=CONNECT_S))
    place = Rank(rank, world_size, store)
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = function(place, *args)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        pipe.send_bytes(pickle.dumps(answer))


def _told(error: BaseException) -> str:
    return "\n".join([repr(error), *getattr(error, "__notes__", [])])
