"""Shared memory that is used again: new pages take longer than what is written to them."""

from __future__ import annotations

import threading
from collections import deque

from ditmesh.shared_memory import Memory

_MOST = 64
"""So many are remembered; each is an open file."""
_MOST_IDLE_BYTES = 128 << 20
_SMALL_BYTES = 1 << 20


class MemoryPool:
    """Memory that was published, from the oldest on. Thread-safe.

    What executors keep of it is theirs. As they keep the newest tensors up to so many bytes, the
    oldest becomes free about when the next one is wanted.
    """

    def __init__(self, *, most: int = _MOST, most_idle_bytes: int = _MOST_IDLE_BYTES) -> None:
        """`most_idle_bytes`: how much that nobody reads is kept."""
        self._most = most
        self._most_idle_bytes = most_idle_bytes
        self._given: deque[Memory] = deque()
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Memory:
        """Empty memory, of about so many bytes if there is such. Raises OSError as `Memory`."""
        most = 2 * nbytes + _SMALL_BYTES
        with self._lock:
            for memory in self._given:
                if nbytes <= memory.room <= most and memory.reuse():
                    self._given.remove(memory)
                    return memory
        return Memory()

    def give_back(self, memory: Memory) -> None:
        """Have it used again once nobody reads it. It was published."""
        if memory.room > self._most_idle_bytes:
            # It could never be kept; who reads it still has it.
            memory.close()
            return
        with self._lock:
            self._given.append(memory)
            if len(self._given) > self._most:
                self._given.popleft().close()
        self.trim()

    def trim(self) -> None:
        """Let go of what is too much, now that others may have ceased to read."""
        with self._lock:
            idle = [memory for memory in self._given if not memory.is_read]
            excess = sum(memory.room for memory in idle) - self._most_idle_bytes
            for memory in idle:
                if excess <= 0:
                    return
                excess -= memory.room
                self._given.remove(memory)
                memory.close()
