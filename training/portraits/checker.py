"""Reads the attributes off a picture: the judge of what the model draws.

A small convolutional network over the 16x16 cell colours with one head per attribute, trained on
rendered portraits with their known attributes and never on anything a model drew. Each head has
one more class for "nothing to read here", which it learns from pictures that are no portraits:
grey ones, noise, portraits with shuffled cells, and the average portrait.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from training.portraits.attributes import CELL, GRID
from training.portraits.dataset import Portraits, load
from training.portraits.labels import HEADS, class_indices, truth
from training.portraits.paths import CHECKER_WEIGHTS, DEFAULT_DATA

CONFIDENCE = 0.5

Cells = npt.NDArray[np.float32]


def cells_of(picture: Image.Image) -> Cells:
    """The mean colour of each cell of a 128x128 picture: float32 [16, 16, 3] in [0, 1]."""
    side = GRID * CELL
    if picture.size != (side, side):
        raise ValueError(f"a portrait is {side}x{side} pixels, not {picture.size}")
    pixels = np.asarray(picture.convert("RGB"), np.float32) / 255
    means: Cells = pixels.reshape(GRID, CELL, GRID, CELL, 3).mean(axis=(1, 3))
    return means


class Checker(nn.Module):
    """The reader."""

    def __init__(self, channels: int = 32, kept: int = 8):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, kept, 1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(kept * GRID * GRID, len(values) + 1) for name, values in HEADS.items()}
        )

    def forward(self, cells: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [N, classes + 1] of each head, for cells [N, 16, 16, 3]."""
        features = self.features(cells.movedim(-1, 1) * 2 - 1)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read_cells(self, cells: Cells) -> list[dict[str, str | None]]:
        """Attributes of N pictures given as cells [N, 16, 16, 3]; None is "cannot be read"."""
        readings: list[dict[str, str | None]] = [{} for _ in cells]
        for name, logits in self(torch.from_numpy(cells)).items():
            confidence, index = logits.softmax(-1).max(-1)
            for reading, sure, value in zip(
                readings, confidence.tolist(), index.tolist(), strict=True
            ):
                known = value < len(HEADS[name]) and sure >= CONFIDENCE
                reading[name] = HEADS[name][value] if known else None
        return readings

    def read(self, picture: Image.Image) -> dict[str, str | None]:
        """Attributes of one picture of 128x128 pixels."""
        return self.read_cells(cells_of(picture)[None])[0]


def load_checker(path: Path = CHECKER_WEIGHTS) -> Checker:
    """The trained reader."""
    checker = Checker()
    checker.load_state_dict(load_file(path))
    return checker.float().eval()


@dataclass(frozen=True)
class CheckerTraining:
    """How the reader learns."""

    steps: int = 2500
    batch: int = 128
    learning_rate: float = 2e-3
    negatives: int = 16
    noise: float = 0.05
    seed: int = 0


def train(portraits: Portraits, config: CheckerTraining) -> Checker:
    """Trains a reader on rendered portraits, noise added, and on pictures that are none."""
    torch.manual_seed(config.seed)
    rng = np.random.default_rng(config.seed)
    checker = Checker()
    wanted = class_indices(portraits.attributes)
    optimizer = torch.optim.AdamW(checker.parameters(), config.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=config.steps
    )
    for _ in range(config.steps):
        rows = rng.integers(len(portraits), size=config.batch)
        cells = _colors(portraits.pictures[rows])
        negatives = _negatives(cells, portraits, config.negatives, rng)
        both = np.concatenate([cells, negatives])
        level = rng.uniform(0, config.noise, size=(len(both), 1, 1, 1))
        both = both + (level * rng.normal(size=both.shape)).astype(np.float32)
        logits = checker(torch.from_numpy(both.clip(0, 1)))
        loss = torch.zeros(())
        for name, values in HEADS.items():
            target = torch.full((len(both),), len(values))
            target[: config.batch] = wanted[name][rows]
            loss = loss + nn.functional.cross_entropy(logits[name], target, ignore_index=-1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return checker.eval()


def _colors(pictures: npt.NDArray[np.uint8]) -> Cells:
    return (pictures / 255).astype(np.float32)


def _negatives(cells: Cells, portraits: Portraits, count: int, rng: np.random.Generator) -> Cells:
    """Pictures [count, 16, 16, 3] that show no portrait."""
    pictures = cells[:count].copy()
    average = portraits.pictures[:512].mean(axis=0, dtype=np.float32) / 255
    for index in range(count):
        kind = index % 5
        if kind == 0:
            pictures[index] = rng.uniform(0, 1)
        elif kind == 1:
            pictures[index] = rng.uniform(0, 1, size=3)
        elif kind == 2:
            pictures[index] = rng.normal(0.5, rng.uniform(0.05, 0.5), size=(GRID, GRID, 3))
        elif kind == 3:
            shuffled = rng.permutation(pictures[index].reshape(-1, 3))
            pictures[index] = shuffled.reshape(GRID, GRID, 3)
        else:
            pictures[index] = average + 0.1 * (pictures[index] - average)
    return pictures


def accuracies(checker: Checker, portraits: Portraits) -> dict[str, float]:
    """The share of portraits that each head reads right, of those where there is anything to."""
    readings = checker.read_cells(_colors(portraits.pictures))
    truths = [truth(attributes) for attributes in portraits.attributes]
    shares = {}
    for name in HEADS:
        right = [
            reading[name] == seen[name]
            for reading, seen in zip(readings, truths, strict=True)
            if seen[name] is not None
        ]
        shares[name] = sum(right) / len(right)
    return shares


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the reader of attributes on the data.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="rendered data")
    parser.add_argument("--out", type=Path, default=CHECKER_WEIGHTS, help="weights to write")
    parser.add_argument("--steps", type=int, default=CheckerTraining.steps)
    args = parser.parse_args(argv)
    checker = train(load(args.data / "train.npz"), CheckerTraining(steps=args.steps))
    save_file({key: value.half() for key, value in checker.state_dict().items()}, args.out)
    checker = load_checker(args.out)
    held_out = load(args.data / "held_out.npz")
    for name, share in accuracies(checker, held_out).items():
        print(f"{name:14s} {share:7.2%} of {len(held_out)} held-out portraits")


if __name__ == "__main__":
    main()
