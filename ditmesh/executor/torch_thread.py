"""The thread that computes: one a process, because its work comes in the order of the ranks'."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class TorchThread(ThreadPoolExecutor):
    """Does one piece of work after another."""

    def __init__(self) -> None:
        super().__init__(1, thread_name_prefix="torch")
        self._lock = threading.Lock()
        self._unfinished = 0

    @property
    def busy(self) -> bool:
        """Whether there is work that has not ended; false in the callbacks of the last one."""
        return self._unfinished > 0

    def submit(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As `Executor.submit`."""
        with self._lock:
            self._unfinished += 1
        try:
            future = super().submit(work, *args, **kwargs)
        except BaseException:
            self._ended(None)
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: Future[Any] | None) -> None:
        with self._lock:
            self._unfinished -= 1
