"""An auxiliary loss: the text encoders must tell what captions say.

Linear heads on the pooled CLIP embedding, and on the mean of the T5 tokens, tell the attributes of
the portrait that a caption was written for. Learning the words through the pictures alone takes
several times as long; the heads cost next to nothing and are not shipped.
"""

from __future__ import annotations

import torch
from torch import nn

from training.portraits.labels import HEADS


class Readout(nn.Module):
    """One linear head per attribute and encoder."""

    def __init__(self, text_dim: int):
        super().__init__()
        self.clip = nn.ModuleDict(_heads(text_dim))
        self.t5 = nn.ModuleDict(_heads(text_dim))

    def forward(
        self, pooled: torch.Tensor, text: torch.Tensor, target: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Mean cross-entropy over attributes and encoders.

        Args:
            pooled: [B, D] of CLIP.
            text: [B, T, D] of T5.
            target: class indices [B] of each attribute; -1 where it is not in sight.

        """
        mean = text.mean(dim=1)
        losses = []
        for name in HEADS:
            seen = target[name] >= 0
            for logits in (self.clip[name](pooled), self.t5[name](mean)):
                each = nn.functional.cross_entropy(
                    logits, target[name], ignore_index=-1, reduction="sum"
                )
                losses.append(each / seen.sum().clamp(min=1))
        return torch.stack(losses).mean()


def _heads(text_dim: int) -> dict[str, nn.Module]:
    return {name: nn.Linear(text_dim, len(values)) for name, values in HEADS.items()}
