"""Whose turn it is on one executor.

    ──take──> AT WORK ──hand_on──> LEAVING ──give_back──> gone
                 └──────────────give_back────────────────^

One turn is at work, and at most one is leaving: its last step has begun, or its result is on its
way. Work that is taken meanwhile lines up behind it on the executor's members and begins by itself
once it is out of the way, so that nothing rests in between.
"""

from __future__ import annotations

from dataclasses import dataclass


class NotItsTurn(AssertionError):
    """An executor taken while it is at work, or given back twice: a defect of the caller."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One piece of work's time on an executor. `lined_up`: another was leaving when it began."""

    lined_up: bool


class Turns:
    """The turns on one executor."""

    def __init__(self) -> None:
        self._at_work: Turn | None = None
        self._leaving: Turn | None = None

    @property
    def free(self) -> bool:
        """Whether it can be taken."""
        return self._at_work is None

    @property
    def there(self) -> int:
        """How many share it, up to two."""
        return sum(turn is not None for turn in (self._at_work, self._leaving))

    @property
    def idle(self) -> bool:
        """Whether nothing of any work is left on it."""
        return not self.there

    def take(self) -> Turn:
        """The next turn. Raises NotItsTurn unless it is free."""
        if self._at_work is not None:
            raise NotItsTurn("the executor is at work")
        self._at_work = Turn(lined_up=self._leaving is not None)
        return self._at_work

    def hand_on(self, turn: Turn) -> bool:
        """The work is about to end; whether another may be taken from now on.

        Not while an earlier one is still leaving: never do more than two share the members.
        """
        if turn is not self._at_work or self._leaving is not None:
            return False
        self._at_work, self._leaving = None, turn
        return True

    def give_back(self, turn: Turn) -> None:
        """The work is over, however it ended. Raises NotItsTurn when it was over before."""
        if turn is self._at_work:
            self._at_work = None
        elif turn is self._leaving:
            self._leaving = None
        else:
            raise NotItsTurn("the turn was given back before")
