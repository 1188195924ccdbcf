"""Plots of results: one SVG a suite, a panel a comparison."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

from bench import suites
from bench.results import Comparison, Report, quantile

_COLUMNS = 2
_OURS, _THEIRS = "#2f6f9f", "#b8b8b8"


def file_name(suite: str) -> str:
    """Of a suite's plot."""
    return f"bench-{suite}.svg"


def draw(report: Report, folder: Path) -> list[Path]:
    """A plot for each suite that compared something; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    # The same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "ditmesh"
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["font.size"] = 8
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _draw_suite(name, result.comparisons, folder)
        for name, result in report.suites.items()
        if result.comparisons
    ]


def _draw_suite(name: str, comparisons: Any, folder: Path) -> Path:
    from matplotlib import pyplot

    rows = math.ceil(len(comparisons) / _COLUMNS)
    height = sum(
        0.5 + 0.28 * max(len(c.series) for c in comparisons[at : at + _COLUMNS])
        for at in range(0, len(comparisons), _COLUMNS)
    )
    figure, axes = pyplot.subplots(
        rows, _COLUMNS, figsize=(9, height), squeeze=False, layout="constrained"
    )
    for place, axis in enumerate(axes.flat):
        if place < len(comparisons):
            _draw_comparison(axis, comparisons[place])
        else:
            axis.set_visible(False)
    path = folder / file_name(name)
    figure.savefig(path, metadata={"Date": None, "Title": suites.suite(name).TITLE})
    pyplot.close(figure)
    return path


def _draw_comparison(axis: Any, comparison: Comparison) -> None:
    """Bars of the medians; the line over each spans the middle half of the values."""
    names = list(comparison.series)
    middle = [median(comparison.series[name]) for name in names]
    low = [m - quantile(comparison.series[n], 0.25) for m, n in zip(middle, names, strict=True)]
    high = [quantile(comparison.series[n], 0.75) - m for m, n in zip(middle, names, strict=True)]
    colours = [_OURS if name.startswith("ditmesh") else _THEIRS for name in names]
    axis.barh(names, middle, xerr=(low, high), color=colours, ecolor="#444444", capsize=2)
    axis.invert_yaxis()
    axis.set_title(comparison.title, loc="left", fontsize=8)
    axis.set_xlabel(comparison.unit)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
