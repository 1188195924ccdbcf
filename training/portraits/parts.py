"""What is fixed before training starts: the tokenizers and the colour map, kept with the run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from training.portraits.autoencoder import ColorMap, fit_color_map
from training.portraits.captions import caption
from training.portraits.dataset import Portraits
from training.portraits.tokenization import train_clip_tokenizer, train_t5_tokenizer

CAPTIONS = 20_000


@dataclass(frozen=True)
class Parts:
    """The tokenizers and the colour map of one run."""

    clip: CLIPTokenizer
    t5: PreTrainedTokenizerFast
    colors: ColorMap


def prepare(portraits: Portraits, run: Path, seed: int = 0) -> Parts:
    """Makes the parts from the data and saves them in ``run``, or loads what is saved there."""
    if not (run / "colors.npz").exists():
        rng = random.Random(seed)
        texts = [caption(attributes, rng) for attributes in portraits.attributes[:CAPTIONS]]
        train_clip_tokenizer(texts).save_pretrained(run / "tokenizer")
        train_t5_tokenizer(texts).save_pretrained(run / "tokenizer_2")
        colors = fit_color_map(portraits.pictures)
        np.savez(
            run / "colors.npz",
            mean=colors.mean,
            to_latent=colors.to_latent,
            to_rgb=colors.to_rgb,
        )
    return load_parts(run)


def load_parts(run: Path) -> Parts:
    """Loads the parts of a run."""
    with np.load(run / "colors.npz") as file:
        colors = ColorMap(file["mean"], file["to_latent"], file["to_rgb"])
    return Parts(
        clip=CLIPTokenizer.from_pretrained(run / "tokenizer"),
        t5=PreTrainedTokenizerFast.from_pretrained(run / "tokenizer_2"),
        colors=colors,
    )
