"""What files hold, read again when they change: certificates and tokens are renewed in place."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloading(Generic[T]):
    """A value that is made from files; another object once they have changed.

    Whoever needs it asks for `current`, which looks at the files' inodes, sizes and times. Files
    that cannot be used, such as half of a pair that is being replaced, leave the value as it is.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T]) -> None:
        """`read` makes the value. What it raises is raised here; later it is logged."""
        self._files = tuple(files)
        self._read = read
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._value = read()

    def current(self) -> T:
        """The value by the files as they are now, or as they last were of use."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._reload()
            return self._value

    def _reload(self) -> None:
        names = ", ".join(map(str, self._files))
        try:
            self._value = self._read()
        except (OSError, ValueError) as error:
            log.error("%s: changed, and not of use: %s. The old goes on", names, error)
        else:
            log.info("%s: changed, and taken", names)

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_stamp, self._files))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None  # reading it will say why
    return found.st_ino, found.st_size, found.st_mtime_ns
