"""Contestants take turns, and what is said of them follows from their values alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.measure import Options, alternate, timed
from bench.results import Comparison, Goal, Report, SuiteResult, Table, quantile


def test_contestants_take_turns() -> None:
    """Each round begins with another one, every second runs backwards, warm-ups do not count."""
    order: list[str] = []

    def contestant(name: str) -> float:
        order.append(name)
        return float(len(order))

    names = ("a", "b", "c")
    values = alternate({n: lambda n=n: contestant(n) for n in names}, 3, warmups=1)
    assert "".join(order) == "abc" + "abc" + "acb" + "cab"
    assert values == {"a": (4, 7, 11), "b": (5, 9, 12), "c": (6, 8, 10)}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """A round in which everything is slow changes no ratio."""
    comparison = Comparison("t", "ms", {"base": [1, 2, 100], "x": [2, 4, 200]}, baseline="base")
    assert comparison.ratio("x") == 2
    assert comparison.difference("x") == 2


def test_quantiles_lie_on_lines_between_values() -> None:
    """As numpy's default has them."""
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([1.0, 2.0], 0.25) == 1.25
    assert quantile([7.0], 0.99) == 7.0


def test_a_goal_knows_its_direction() -> None:
    """At most, unless it says at least; the limit itself is good enough."""
    assert Goal("g", 1.0, 1.0, "x").met
    assert not Goal("g", 1.1, 1.0, "x").met
    assert Goal("g", 1.8, 1.8, "x", at_least=True).met
    assert not Goal("g", 1.7, 1.8, "x", at_least=True).met


def test_a_report_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    """Every part of it; a file of another format is refused with what to do."""
    suite = SuiteResult(
        (Comparison("c", "ms", {"a": [1.0]}, tail=True),),
        (Table("t", ["h"], [["r", 1.5]]),),
        (Goal("g", 1.0, 2.0, "x", at_least=True),),
        seconds=3.0,
    )
    report = Report({"cores": 2}, {"reps": 0}, {"one": suite, "two": SuiteResult(skipped="why")})
    path = tmp_path / "folder" / "results.json"
    report.save(path)
    assert Report.load(path) == report
    path.write_text("{}")
    with pytest.raises(ValueError, match="run python -m bench again"):
        Report.load(path)


def test_rounds_are_as_asked_for(tmp_path: Path) -> None:
    """A number of repetitions counts more than the kind of run."""
    assert Options(tmp_path).rounds(11, 3) == 11
    assert Options(tmp_path, quick=True).rounds(11, 3) == 3
    assert Options(tmp_path, reps=5, quick=True).rounds(11, 3) == 5


def test_time_is_in_milliseconds() -> None:
    """Of the task with its arguments."""
    seen: list[int] = []
    assert 0 <= timed(seen.append, 4)() < 1000
    assert seen == [4]
