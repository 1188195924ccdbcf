"""The page is made of results: marked blocks alone change, and the kept page has the kept ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import document, suites
from bench.results import Comparison, Goal, Report, SuiteResult, Table

ROOT = Path(__file__).parents[2]
MACHINE = {
    "processor": "p",
    "cores": 2,
    "memory_gib": 8,
    "gpu": "",
    "kernel": "6",
    "python": "3.11",
    "versions": {"torch": "2", "ray": ""},
    "load_before": 0.1,
}
OPTIONS = {"reps": 0, "ranks": 8, "quick": False, "small": False}


def report(**found: SuiteResult) -> Report:
    return Report(MACHINE, OPTIONS, found)


def test_blocks_with_results_are_made_anew_and_nothing_else() -> None:
    """Words around them stay, and a block of a suite that did not run keeps what it has."""
    page = (
        "before\n<!-- bench: overhead -->\nold\n<!-- /bench -->\nbetween\n"
        "<!-- bench: predict -->\nkept\n<!-- /bench -->\nafter\n"
    )
    comparison = Comparison("c", "ms", {"bare": [1.0, 3.0], "ditmesh": [2.0, 6.0]}, baseline="bare")
    made = document.fill(page, report(overhead=SuiteResult([comparison])))
    assert made.startswith("before\n<!-- bench: overhead -->\n**c** (2 rounds)")
    assert "| ditmesh | 4 | 3 to 5 | 2.00 |" in made
    assert "old" not in made
    assert made.endswith("<!-- bench: predict -->\nkept\n<!-- /bench -->\nafter\n")
    assert document.fill(made, report(overhead=SuiteResult([comparison]))) == made


def test_goals_machine_and_skipped_suites_are_told() -> None:
    """All goals in one table, met or not; a suite that was skipped says what it needs."""
    page = "".join(
        f"<!-- bench: {name} -->\n<!-- /bench -->\n" for name in ("goals", "machine", "gpu")
    )
    goals = [Goal("fast", 0.012, 1.0, "ms"), Goal("faster", 1.5, 1.8, "x", at_least=True)]
    made = document.fill(page, report(busy=SuiteResult(goals=goals), gpu=SuiteResult(skipped="s")))
    assert "| fast | 0.012 | at most 1 ms | met |" in made
    assert "| faster | 1.5 | at least 1.8 x | **not met** |" in made
    assert "| processor | p, 2 cores |" in made
    assert "torch 2 |" in made
    assert "Not measured: s." in made


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.6, "1,235"), (12.345, "12.3"), (0.00012345, "0.000123"), (99.96, "100")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    """Never an exponent."""
    table = SuiteResult(tables=[Table("t", ["h"], [[value]])])
    assert f"| {text} |" in list(document.suite_lines("busy", table))


def test_every_suite_has_its_place_on_the_page() -> None:
    """A suite that is not shown might as well not be measured."""
    page = (ROOT / document.PAGE).read_text()
    for name in ("machine", "goals", *suites.NAMES):
        assert f"<!-- bench: {name} -->" in page


def test_the_page_is_that_of_the_kept_results() -> None:
    """Nobody types a figure: `python -m bench --report` gives this page again."""
    page = (ROOT / document.PAGE).read_text()
    assert document.fill(page, Report.load(ROOT / document.RESULTS)) == page
