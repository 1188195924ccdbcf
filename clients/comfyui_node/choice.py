"""Which of a cluster's models a node means."""

from __future__ import annotations

from typing import Any

from ditmesh.errors import DitmeshError, Unavailable

from .dispatcher import Dispatcher


class NoModel(RuntimeError):
    """The cluster does not have what is asked for; the message says what it has."""


def choose_model(
    dispatcher: Dispatcher | None, name: str, *, with_pipeline: bool = False
) -> tuple[Dispatcher, Any]:
    """The cluster, and its `ModelCard` of that name; of no name, the only one that will do.

    Raises:
        NoModel: there is none, or the cluster cannot be asked.
    """
    dispatcher = dispatcher or Dispatcher.from_environment()
    try:
        cluster = dispatcher.cluster()
    except DitmeshError as error:
        start = (
            " To start one on this machine: ditmesh up" if isinstance(error, Unavailable) else ""
        )
        raise NoModel(
            f"The cluster at {dispatcher.address} cannot be used: {error}{start}"
        ) from error
    return dispatcher, pick(cluster.models, name.strip(), dispatcher.address, with_pipeline)


def pick(cards: Any, name: str, address: str, with_pipeline: bool) -> Any:
    """The card of that name, or the only one. Raises NoModel."""
    usable = [card for card in cards if card.has_pipeline or not with_pipeline]
    chosen = [card for card in usable if card.name == name or not name]
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(card.name for card in usable) or "none"
    kind = " that can encode prompts and decode pictures" if with_pipeline else ""
    if not name and chosen:
        raise NoModel(f"The cluster at {address} has several models{kind}; choose one of: {there}")
    asked = f"no model {name!r}" if name else "no model"
    raise NoModel(f"The cluster at {address} has {asked}{kind}; there are: {there}")
