"""How long the next step may take, learnt from the steps before it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Patience:
    """Seconds to wait for the next step before the executor counts as hung.

    The first step may compile and warm up: it has `first_s`. A later one has `factor` times the
    slowest step so far, but never less than `floor_s`: machines pause.
    """

    first_s: float = 300.0
    floor_s: float = 10.0
    factor: float = 10.0
    _slowest_s: float = 0.0
    _steps: int = 0

    def note(self, seconds: float) -> None:
        """A step took so long."""
        self._steps += 1
        if self._steps > 1:
            # The first is no measure of the others.
            self._slowest_s = max(self._slowest_s, seconds)

    def limit_s(self) -> float:
        """For the step that is being waited for."""
        if self._steps < 2:
            return self.first_s
        return max(self.floor_s, self.factor * self._slowest_s)
