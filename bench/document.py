"""docs/performance.md from results: tables in place of what stands between the markers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import plots, suites
from bench.results import Comparison, Goal, Report, SuiteResult, Table, quantile

PAGE = Path("docs/performance.md")
RESULTS = Path("docs/performance.json")
PLOTS = Path("docs/images")
_BLOCK = re.compile(r"<!-- bench: ([a-z]+) -->\n.*?<!-- /bench -->", re.DOTALL)


def write(report: Report) -> list[Path]:
    """Write page, plots, and the results that they are made of; returns what was written."""
    report.save(RESULTS)
    drawn = plots.draw(report, PLOTS)
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    return [PAGE, RESULTS, *drawn]


def fill(page: str, report: Report) -> str:
    """The page with every marked block made anew. A block without results keeps what it has."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name == "machine":
            body = "\n".join(_machine(report))
        elif name == "goals":
            body = "\n".join(_all_goals(report))
        elif name in report.suites:
            body = "\n".join(suite_lines(name, report.suites[name]))
        else:
            return match[0]
        return f"<!-- bench: {name} -->\n{body}\n<!-- /bench -->"

    return _BLOCK.sub(block, page)


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Header and a row a contestant: median, the middle half, the tail if any, the ratio."""
    header = [comparison.unit, "median", "middle half"]
    if comparison.tail:
        header.append("p99")
    if comparison.baseline:
        header.append(f"to {comparison.baseline}")
    rows = [header]
    for name, values in comparison.series.items():
        row = [name, _figure(median(values))]
        row.append(f"{_figure(quantile(values, 0.25))} to {_figure(quantile(values, 0.75))}")
        if comparison.tail:
            row.append(_figure(quantile(values, 0.99)))
        if comparison.baseline:
            row.append(f"{comparison.ratio(name):.2f}" if name != comparison.baseline else "1")
        rows.append(row)
    return rows


def suite_lines(name: str, result: SuiteResult) -> Iterator[str]:
    """The generated part of one suite's section."""
    if result.skipped:
        yield f"Not measured: {result.skipped}."
        return
    for comparison in result.comparisons:
        yield f"**{comparison.title}** ({_rounds(comparison)})\n"
        yield from _markdown(comparison_rows(comparison))
        yield ""
    for table in result.tables:
        yield f"**{table.title}**\n"
        yield from _table(table)
        yield ""
    if result.comparisons:
        yield f"![{suites.suite(name).TITLE}](images/{plots.file_name(name)})"


def _rounds(comparison: Comparison) -> str:
    count = max(len(values) for values in comparison.series.values())
    return f"{count} values each" if comparison.tail else f"{count} rounds"


def _machine(report: Report) -> Iterator[str]:
    machine: Mapping[str, Any] = report.machine
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    yield from _markdown(
        [
            ["what", "is"],
            ["processor", f"{machine['processor']}, {machine['cores']} cores"],
            ["memory", f"{machine['memory_gib']} GiB"],
            ["GPU", machine["gpu"] or "none"],
            ["software", f"Linux {machine['kernel']}, Python {machine['python']}, {versions}"],
            ["ranks", str(report.options["ranks"])],
            ["load before the run", f"{machine['load_before']:.2f}"],
            ["kind of run", "quick" if report.options["quick"] else "full"],
        ]
    )


def _all_goals(report: Report) -> Iterator[str]:
    rows = [["goal", "measured", "limit", ""]]
    for result in report.suites.values():
        rows += [_goal_row(goal) for goal in result.goals]
    yield from _markdown(rows)


def _goal_row(goal: Goal) -> list[str]:
    sense = "at least" if goal.at_least else "at most"
    limit = f"{sense} {goal.limit:g} {goal.unit}"
    return [goal.what, _figure(goal.measured, 3), limit, "met" if goal.met else "**not met**"]


def _table(table: Table) -> Iterator[str]:
    rows = [[c if isinstance(c, str) else _figure(float(c)) for c in row] for row in table.rows]
    yield from _markdown([list(table.header), *rows])


def _markdown(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    head, *body = rows
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in body:
        yield "| " + " | ".join(row) + " |"


def _figure(value: float, digits: int = 3) -> str:
    """A number to so many digits, without an exponent."""
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return f"{float(text):.10f}".rstrip("0").rstrip(".") if "e" in text else text
