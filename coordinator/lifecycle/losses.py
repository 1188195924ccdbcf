"""How often executors may break under a job before it counts as the cause.

Each loss without a step in between counts. What breaks under a job that lined up behind another
may be the other's doing, so that such a loss keeps it from nothing yet; but from its first loss on
a job has its executors to itself, and what breaks under it then is its own doing.
"""

from __future__ import annotations

from collections import Counter

# The group serves others, and the local sampler is left; after that one there is nobody.
_MOST = {"group": 2, "local": 3}


class Losses:
    """What one job has cost so far."""

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()

    @property
    def any(self) -> bool:
        """Whether it has cost an executor, and is to have the next one to itself."""
        return bool(self._in_a_row)

    def note(self, executor: str, *, advanced: bool, lined_up: bool) -> bool:
        """The "group" or the "local" sampler broke under it, perhaps after it had `advanced` by a
        step; whether it must not have that one again.
        """
        self._in_a_row[executor] = 1 if advanced else self._in_a_row[executor] + 1
        return not lined_up and self._in_a_row[executor] >= _MOST[executor]
