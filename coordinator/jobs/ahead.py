"""A waiting job on its way to the executor that it will have next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from coordinator.executors.executor import Executor
from coordinator.executors.member import PreparedRun, give_up

Prepare = Callable[[Executor], Coroutine[Any, Any, PreparedRun]]


class Ahead:
    """Has a job prepared by one executor at a time while another job works there.

    It is never more than a gain of time: what fails here is done again, and told, when the job's
    turn comes.
    """

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._executor: Executor | None = None
        self._task: asyncio.Task[PreparedRun] | None = None

    def begin(self, executor: Executor | None) -> None:
        """Prepare for this executor, unless that is under way. None: for no executor."""
        if executor is self._executor:
            return
        self.drop()
        self._executor = executor
        if executor is not None:
            self._task = asyncio.create_task(self._prepare(executor))

    def take(self, executor: Executor) -> asyncio.Task[PreparedRun] | None:
        """The preparation for this executor, done or under way, if it has not failed; the caller
        owns it from now on. One for another executor is given up.
        """
        task = self._task
        if executor is not self._executor or task is None or _failed(task):
            self.drop()
            return None
        self._executor = self._task = None
        return task

    def drop(self) -> None:
        """Give up what was prepared."""
        if self._task is not None:
            give_up(self._task)
        self._executor = self._task = None


def _failed(task: asyncio.Task[PreparedRun]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
