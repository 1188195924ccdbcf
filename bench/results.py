"""What a benchmark found, as values that go to JSON and come back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

FORMAT = 1


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, between neighbours by a straight line."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Goal:
    """A limit and what was measured. `unit` is "x" for a ratio."""

    what: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the limit is kept."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


@dataclass(frozen=True)
class Comparison:
    """Contestants at one task. `series` holds each one's values in the order of the rounds."""

    title: str
    unit: str
    series: Mapping[str, Sequence[float]]
    baseline: str = ""
    """The contestant that ratios are relative to; empty: there are no ratios."""
    tail: bool = False
    """Whether the 99th percentile is worth showing: there are many values."""

    def ratio(self, name: str) -> float:
        """Median over the rounds of `name`'s value divided by the baseline's of that round."""
        pairs = zip(self.series[name], self.series[self.baseline], strict=True)
        return median(value / base for value, base in pairs)

    def difference(self, name: str) -> float:
        """Median over the rounds of `name`'s value less the baseline's of that round."""
        pairs = zip(self.series[name], self.series[self.baseline], strict=True)
        return median(value - base for value, base in pairs)


@dataclass(frozen=True)
class Table:
    """Figures that are no contest."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]


@dataclass(frozen=True)
class SuiteResult:
    """Everything one suite found. `skipped` says why it found nothing."""

    comparisons: Sequence[Comparison] = ()
    tables: Sequence[Table] = ()
    goals: Sequence[Goal] = ()
    skipped: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """One run of the benchmarks."""

    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    suites: Mapping[str, SuiteResult] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"format": FORMAT, **dataclasses.asdict(self)}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote. Raises OSError or ValueError."""
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is no report of format {FORMAT}; run python -m bench again")
        suites = {name: _suite(fields) for name, fields in document.pop("suites").items()}
        return cls(suites=suites, **document)


def _suite(fields: Mapping[str, Any]) -> SuiteResult:
    return SuiteResult(
        comparisons=tuple(Comparison(**c) for c in fields["comparisons"]),
        tables=tuple(Table(**t) for t in fields["tables"]),
        goals=tuple(Goal(**g) for g in fields["goals"]),
        skipped=fields["skipped"],
        seconds=fields["seconds"],
    )
