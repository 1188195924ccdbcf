"""What a process is likely to have: it need not be offered what it was given before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

_MOST = 1024


class Given:
    """Hashes of tensors that one process was given, the latest of them.

    It may have dropped some since, and asks for those: what is said here only saves time.
    """

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, sha256: bytes) -> bool:
        return sha256 in self._hashes

    def add(self, hashes: Iterable[bytes]) -> None:
        """It has these now."""
        for sha256 in hashes:
            self._hashes[sha256] = None
            self._hashes.move_to_end(sha256)
        while len(self._hashes) > _MOST:
            self._hashes.popitem(last=False)

    def clear(self) -> None:
        """It is another process, or may be."""
        self._hashes.clear()
