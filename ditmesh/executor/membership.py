"""Into groups and out of them: one order after another, whatever threads they come on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future

from ditmesh.errors import Loading, StaleEpoch
from ditmesh.executor.engine import Engine
from ditmesh.executor.torch_thread import TorchThread
from ditmesh.v1 import node_pb2 as pb

log = logging.getLogger(__name__)

_FREE_S = 5.0


class Membership:
    """Has one engine join and leave.

    Orders come on threads of their own, and an old one may be late: what it finds, breaks and
    leaves must be one and the same group, so that nobody else can come in between.
    """

    def __init__(
        self,
        engine: Engine,
        torch_thread: TorchThread,
        give_up: Callable[[str], None],
        on_left: Callable[[], None],
    ) -> None:
        """`give_up` ends the process when the torch thread cannot be freed. `on_left` is called
        when a group is left later than it was ordered, because weights were loaded first.
        """
        self._engine = engine
        self._torch_thread = torch_thread
        self._give_up = give_up
        self._on_left = on_left
        self._lock = threading.Lock()
        self._epoch = 0
        self._newest_epoch = 0
        self._aborted = threading.Event()
        self._joining: Future[None] | None = None

    @property
    def newest_epoch(self) -> int:
        """The newest group this process has been in or was to join, 0 for none."""
        return self._newest_epoch

    def join(self, request: pb.JoinGroupRequest) -> None:
        """Leave the old group and join a newer one; returns when all have joined.

        Raises StaleEpoch, Loading while weights are loaded (the old group is as good as left then,
        and the order is to be given again), and what `Engine.join` does.
        """
        with self._lock:
            if request.epoch <= self._newest_epoch:
                # Before anything is left: an old message must not cost the new group.
                raise StaleEpoch(
                    f"this node knows epoch {self._newest_epoch}; {request.epoch} is not newer"
                )
            self._free()
            if model := self._engine.cache.loading:
                raise Loading(f"this node loads {model}: it joins when it is through")
            self._epoch = self._newest_epoch = request.epoch
            self._aborted = threading.Event()
            joining = self._torch_thread.submit(self._engine.join, request, self._aborted)
            self._joining = joining
        joining.result()

    def leave(self, epoch: int) -> None:
        """Abort that group and leave it, if this process is in it or about to join it."""
        with self._lock:
            if epoch == self._epoch:
                self._free()

    def close(self) -> None:
        """Leave whatever there is."""
        with self._lock:
            self._free(for_good=True)

    def _free(self, *, for_good: bool = False) -> None:
        """Abort the group and leave it. A thread that stays stuck is the end of the process.

        One that loads weights is not stuck: it leaves when it is through, and before it does
        anything that is ordered later. Unless the process is to end: that waits for no weights.
        """
        if self._joining is None or (self._joining.done() and not self._engine.epoch):
            # In no group: what the torch thread does is its own, such as loading weights.
            return
        self._aborted.set()
        self._engine.abort()
        leaving = self._torch_thread.submit(self._engine.leave)
        if for_good or not self._loads():
            try:
                leaving.result(timeout=_FREE_S)
            except TimeoutError:
                if for_good or not self._loads():
                    why = "the torch thread is stuck in a collective that cannot be aborted"
                    self._give_up(why)
                    return
        if not leaving.done():
            log.info("epoch %d is left when %s is loaded", self._epoch, self._engine.cache.loading)
            leaving.add_done_callback(lambda _: self._on_left())

    def _loads(self) -> bool:
        return bool(self._engine.cache.loading)
