"""The families that ditmesh knows, by name. A new family is a module and a line here."""

from __future__ import annotations

from ditmesh.errors import UnknownModel
from ditmesh.models.family import Family
from ditmesh.models.flux import Flux

FAMILIES: dict[str, Family] = {"flux": Flux()}


def family(name: str) -> Family:
    """The adapter of a family.

    Raises:
        UnknownModel: there is no such family; names those there are.
    """
    try:
        return FAMILIES[name]
    except KeyError:
        known = ", ".join(sorted(FAMILIES))
        raise UnknownModel(f"no model family {name!r}; there are: {known}") from None
