"""An auxiliary loss: the text encoders must tell what captions say.

Linear heads on the pooled CLIP embedding, and on the T5 token that an attribute's own query
chooses, tell the attributes of the portrait that a caption was written for. A query chooses among
tokens as the picture's tokens do in the transformer, so that what it must find, a part that knows
its colour, is what the picture needs. Learning the words through the pictures alone takes several
times as long; the heads cost next to nothing and are not shipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from training.portraits.labels import HEADS


@dataclass(frozen=True)
class Reading:
    """What the heads tell of one batch of captions."""

    loss: torch.Tensor
    """Mean cross-entropy over attributes and encoders."""
    right: dict[str, tuple[float, float]]
    """Share of right answers by attribute: from CLIP, from T5."""


class Readout(nn.Module):
    """One linear head per attribute and encoder, and one query per attribute over T5's tokens."""

    def __init__(self, text_dim: int):
        super().__init__()
        self.clip = nn.ModuleDict(_heads(text_dim))
        self.t5 = nn.ModuleDict(_heads(text_dim))
        self.queries = nn.Linear(text_dim, len(HEADS), bias=False)

    def forward(
        self, pooled: torch.Tensor, text: torch.Tensor, target: dict[str, torch.Tensor]
    ) -> Reading:
        """Reads a batch.

        Args:
            pooled: [B, D] of CLIP.
            text: [B, T, D] of T5.
            target: class indices [B] of each attribute; -1 where it is not in sight.

        """
        chosen = torch.einsum("bta,btd->abd", self.queries(text).softmax(dim=1), text)
        losses = []
        right = {}
        for name, mixed in zip(HEADS, chosen, strict=True):
            told = (self.clip[name](pooled), self.t5[name](mixed))
            losses += [_cross_entropy(logits, target[name]) for logits in told]
            right[name] = (_share_right(told[0], target[name]), _share_right(told[1], target[name]))
        return Reading(torch.stack(losses).mean(), right)


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    total = nn.functional.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
    return total / (target >= 0).sum().clamp(min=1)


def _share_right(logits: torch.Tensor, target: torch.Tensor) -> float:
    seen = target >= 0
    return ((logits.argmax(dim=1) == target) & seen).sum().item() / max(1, seen.sum().item())


def _heads(text_dim: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(text_dim, len(values)) for name, values in HEADS.items()}
