"""What can be read off a portrait, as classes to learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.portraits import attributes as names
from training.portraits.attributes import Attributes

HEADS: dict[str, tuple[str, ...]] = {
    "hair_color": tuple(names.HAIR_COLORS),
    "hair_style": tuple(names.HAIR_STYLES),
    "glasses": tuple(names.GLASSES),
    "hat": tuple(names.HATS),
    "hat_color": tuple(names.HAT_COLORS),
    "beard": ("no", "yes"),
    "clothes_color": tuple(names.CLOTHES_COLORS),
    "clothes": tuple(names.CLOTHES),
    "background": tuple(names.BACKGROUNDS),
    "skin": tuple(names.SKIN_COLORS),
    "mouth": tuple(names.MOUTHS),
}


def truth(attributes: Attributes) -> dict[str, str | None]:
    """What a reader should see in a portrait; None where it cannot be seen."""
    values: dict[str, str | None] = {
        name: getattr(attributes, name) for name in HEADS if name != "beard"
    }
    values["beard"] = "yes" if attributes.beard else "no"
    if attributes.hair_hidden:
        values["hair_color"] = None
    if attributes.hat == "none":
        values["hat_color"] = None
    return values


def class_indices(portraits: Sequence[Attributes]) -> dict[str, torch.Tensor]:
    """Class indices [N] of each attribute; -1 where it cannot be seen."""
    truths = [truth(attributes) for attributes in portraits]
    return {
        name: torch.tensor(
            [-1 if (value := seen[name]) is None else values.index(value) for seen in truths]
        )
        for name, values in HEADS.items()
    }
