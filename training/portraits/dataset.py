"""The rendered portraits, and the batches that the trainer draws from them.

A batch is a pure function of the seed and the step, so that a resumed run sees what an unbroken
one would have seen.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from training.portraits.attributes import Attributes
from training.portraits.autoencoder import ColorMap
from training.portraits.captions import caption
from training.portraits.labels import class_indices
from training.portraits.models import pack
from training.portraits.tokenization import T5_LENGTH

SHORT_LENGTH = 24
LONG_LENGTHS = (T5_LENGTH, T5_LENGTH, 2 * T5_LENGTH, 512)
"""T5 lengths: 24 holds most captions, 64 is what the service pads to, 512 is the default of
``FluxPipeline``. Padding is attended to, so the model has to have seen all of them."""
LONG_SHARE = 0.1
UNIFORM_SHARE = 0.1


@dataclass(frozen=True)
class Portraits:
    """One split of the data set."""

    pictures: npt.NDArray[np.uint8]
    """[N, 16, 16, 3], one value per cell."""
    attributes: list[Attributes]

    def __len__(self) -> int:
        return len(self.attributes)


def load(path: Path) -> Portraits:
    """Reads what ``generate`` wrote."""
    with np.load(path) as file:
        pictures = file["pictures"]
        attributes = [Attributes(**json.loads(text)) for text in file["attributes"]]
    return Portraits(pictures, attributes)


@dataclass(frozen=True)
class Words:
    """Captions and what they say."""

    clip_ids: torch.Tensor
    """[B, L], as long as its longest caption."""
    t5_ids: torch.Tensor
    """[B, T], padded to one of the lengths above."""
    attributes: dict[str, torch.Tensor]
    """Class indices [B] of each attribute that ``labels.HEADS`` lists; -1: not in sight."""


@dataclass(frozen=True)
class Batch(Words):
    """What one training step takes."""

    clean: torch.Tensor
    """Packed model-space latents [B, 64, 64]."""
    noise: torch.Tensor
    """Like ``clean``."""
    sigma: torch.Tensor
    """[B], in (0, 1)."""


@dataclass(frozen=True)
class Batches:
    """Draws batches."""

    portraits: Portraits
    colors: ColorMap
    clip: CLIPTokenizer
    t5: PreTrainedTokenizerFast
    size: int
    seed: int
    shift: float
    """How far towards noise the logit-normal noise levels lean."""

    @cached_property
    def labels(self) -> dict[str, torch.Tensor]:
        """Class indices [N] of each attribute."""
        return class_indices(self.portraits.attributes)

    def draw_words(self, step: int, size: int) -> Words:
        """The captions of one step of the text encoders' own training."""
        rng = random.Random(f"words/{self.seed}/{step}")
        rows = [rng.randrange(len(self.portraits)) for _ in range(size)]
        texts = [self._caption(row, SHORT_LENGTH, rng) for row in rows]
        length = T5_LENGTH if step % 8 == 0 else SHORT_LENGTH
        return Words(
            clip_ids=token_ids(self.clip, texts),
            t5_ids=token_ids(self.t5, texts, "max_length", length),
            attributes={name: values[rows] for name, values in self.labels.items()},
        )

    def draw(self, step: int) -> Batch:
        """The batch of one step."""
        rng = random.Random(f"{self.seed}/{step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        size, length = self.size, SHORT_LENGTH
        if rng.random() < LONG_SHARE:
            length = rng.choice(LONG_LENGTHS)
            # The picture adds 64 tokens; a longer text is paid for with a smaller batch.
            size = max(4, self.size * (64 + SHORT_LENGTH) // (64 + length))
        rows = [rng.randrange(len(self.portraits)) for _ in range(size)]
        texts = [self._caption(row, length, rng) for row in rows]
        clean = pack(torch.from_numpy(self.colors.encode(self.portraits.pictures[rows])))
        return Batch(
            clean=clean,
            noise=torch.randn(clean.shape, generator=generator),
            sigma=draw_sigmas(size, self.shift, generator),
            clip_ids=token_ids(self.clip, texts),
            t5_ids=token_ids(self.t5, texts, "max_length", length),
            attributes={name: values[rows] for name, values in self.labels.items()},
        )

    def _caption(self, row: int, length: int, rng: random.Random) -> str:
        """A caption that fits ``length`` tokens; short lengths are never filled by cutting."""
        for _ in range(20):
            text = caption(self.portraits.attributes[row], rng)
            if length > SHORT_LENGTH or len(self.t5(text).input_ids) <= length:
                return text
        return ""


def draw_sigmas(size: int, shift: float, generator: torch.Generator) -> torch.Tensor:
    """Noise levels [size]: logit-normal, shifted, but for one in ten that is uniform."""
    normal = torch.randn(size, generator=generator)
    uniform = torch.rand(size, generator=generator)
    chosen = torch.rand(size, generator=generator) < UNIFORM_SHARE
    return torch.where(chosen, uniform, torch.sigmoid(normal + math.log(shift)))


def token_ids(
    tokenizer: CLIPTokenizer | PreTrainedTokenizerFast,
    texts: list[str],
    padding: str = "longest",
    length: int | None = None,
) -> torch.Tensor:
    """Token ids [B, L] of texts, cut at ``length`` or at the tokenizer's own limit."""
    encoded = tokenizer(
        texts, padding=padding, max_length=length, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = encoded.input_ids
    return ids
