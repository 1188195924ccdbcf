"""Uses every instrument of `ditmesh.telemetry.Metrics` once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ditmesh.telemetry import Metrics


def use_all(metrics: Metrics) -> None:
    """Call every public method of `metrics` with arguments made from its signature.

    A method that is added later is thus called too. Raises TypeError for a parameter whose kind
    is not known here.
    """
    for name, method in inspect.getmembers(metrics, inspect.ismethod):
        if not name.startswith("_"):
            method(**{p.name: _argument(p) for p in _parameters(method)})


def _parameters(method: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(method, eval_str=False).parameters.values())


def _argument(parameter: inspect.Parameter) -> object:
    kind = str(parameter.annotation)
    examples: Mapping[str, object] = {
        "str": "example",
        "float": 1.0,
        "int": 1,
        "bool": True,
        "Callable[[], int]": lambda: 1,
        "Callable[[], float]": lambda: 1.0,
        "Callable[[], Mapping[str, int]]": lambda: {"example": 1},
        "Callable[[], dict[str, int]]": lambda: {"example": 1},
    }
    if kind not in examples:
        raise TypeError(f"no example for {parameter.name}: {kind}; add one")
    return examples[kind]
