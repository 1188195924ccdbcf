"""Tensors kept under their content hash, so that what repeats is sent once."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable

from ditmesh.tensors import WireTensor

_Key = tuple[str, bytes]

MAX_TENSORS = 4096
"""So many are kept at most: what is known of a small one takes more room than its bytes do. A LoRA
has hundreds."""


class ContentStore:
    """Least-recently-used tensors by (scope, hash), of at most `max_bytes`, and bounded in number.

    A scope is the client's identity: nobody learns from a hash what another client sent.
    Pinned tensors stay until they are unpinned, whatever the limit says. Thread-safe.
    """

    def __init__(self, max_bytes: int, *, max_tensors: int = MAX_TENSORS) -> None:
        self._max_bytes = max_bytes
        self._max_tensors = max_tensors
        self._tensors: OrderedDict[_Key, WireTensor] = OrderedDict()
        self._pins: Counter[_Key] = Counter()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, scope: str, sha256: bytes) -> WireTensor | None:
        """The tensor, now the most recently used, or None."""
        with self._lock:
            tensor = self._tensors.get((scope, sha256))
            if tensor is not None:
                self._tensors.move_to_end((scope, sha256))
            return tensor

    def put(self, scope: str, tensor: WireTensor) -> None:
        """Keep a tensor whose hash has been verified, unless all the room would not do for it."""
        key = (scope, tensor.spec.sha256)
        if tensor.spec.nbytes > self._max_bytes and not self._pins.get(key):
            return
        with self._lock:
            if key not in self._tensors:
                self._tensors[key] = tensor
                self._bytes += tensor.spec.nbytes
            self._tensors.move_to_end(key)
            self._evict()

    def pin(self, scope: str, hashes: Iterable[bytes]) -> None:
        """Keep these until `unpin`, and those that are yet to come from the moment they do."""
        with self._lock:
            self._pins.update((scope, h) for h in hashes)

    def unpin(self, scope: str, hashes: Iterable[bytes]) -> None:
        """Undo one `pin` of each."""
        with self._lock:
            for sha256 in hashes:
                key = (scope, sha256)
                self._pins[key] -= 1
                if self._pins[key] <= 0:
                    del self._pins[key]
            self._evict()

    def _fits(self) -> bool:
        return self._bytes <= self._max_bytes and len(self._tensors) <= self._max_tensors

    def _evict(self) -> None:
        if self._fits():
            return
        for key in list(self._tensors):
            if self._fits():
                return
            if not self._pins.get(key):
                self._bytes -= self._tensors.pop(key).spec.nbytes
