"""How contestants are measured: in one run, in turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.results import SuiteResult


class Skipped(Exception):
    """A suite that cannot run here; the message says what it needs."""


@dataclass(frozen=True)
class Options:
    """What the command line says. `folder` is for logs and whatever a suite has to write."""

    folder: Path
    reps: int = 0
    """Rounds; 0: as many as the suite thinks right."""
    ranks: int = 8
    quick: bool = False
    """A look rather than a measurement: fewer rounds, smaller cases."""
    small: bool = False
    """A shorter endurance run."""

    def fewer_ranks(self, least: int) -> int:
        """So many, but at least `least`, that every other core is left to the service: each of a
        machine of GPUs has several. Never more than `ranks`.
        """
        cores = len(os.sched_getaffinity(0))
        return min(self.ranks, max(least, cores // 2))

    def rounds(self, full: int, quick: int) -> int:
        """How many rounds to measure: as asked for, or what is right for this kind of run."""
        return self.reps or (quick if self.quick else full)


class Suite(Protocol):
    """A module of `bench.suites`."""

    TITLE: str

    def run(self, options: Options) -> SuiteResult:
        """Measure. Raises Skipped."""
        ...


Contestant = Callable[[], float]
"""Does its task once and returns what it took, in the unit of the comparison."""


def alternate(
    contestants: Mapping[str, Contestant], rounds: int, *, warmups: int = 1
) -> dict[str, Sequence[float]]:
    """Values by contestant. Each round begins with another one; every second runs backwards."""
    names = list(contestants)
    for _ in range(warmups):
        for contestant in contestants.values():
            contestant()
    values: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds):
        first = round_number % len(names)
        order = names[first:] + names[:first]
        if round_number % 2:
            order.reverse()
        for name in order:
            values[name].append(contestants[name]())
    return {name: tuple(found) for name, found in values.items()}


def timed(task: Callable[..., object], *args: object) -> Contestant:
    """A contestant whose value is the milliseconds that `task(*args)` takes."""

    def run() -> float:
        started = time.perf_counter()
        task(*args)
        return 1e3 * (time.perf_counter() - started)

    return run
