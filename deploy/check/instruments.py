"""Uses every instrument of `ditmesh.telemetry.Metrics` once."""

from __future__ import annotations

import inspect
from typing import Final

from ditmesh.telemetry import Metrics
from ditmesh.telemetry.metrics import _READINGS

_EXAMPLES: Final = {
    "str": "example",
    "float": 1.0,
    "Callable[[], Mapping[str, int]]": lambda: {"example": 1},
    "Mapping[str, Callable[[], int]]": {
        name: lambda: 1 for name in _READINGS if name != "ditmesh.nodes"
    },
}
"""An argument for every kind of parameter, by its annotation."""


def use_all(metrics: Metrics) -> None:
    """Call every public method of `metrics` with arguments made from its signature.

    A method that is added later is thus called too. Raises KeyError for a parameter whose kind
    is not known here: add an example.
    """
    for name, method in inspect.getmembers(metrics, inspect.ismethod):
        if not name.startswith("_"):
            parameters = inspect.signature(method).parameters.values()
            method(**{p.name: _EXAMPLES[str(p.annotation)] for p in parameters})
