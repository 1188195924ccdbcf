"""Trains the model from nothing: ``python -m training.portraits.train``.

Renders the data if there is none, trains or resumes, drawing a sample sheet now and then, exports
the diffusers folder and measures how it follows prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from training.portraits import evaluate, generate
from training.portraits.autoencoder import build_autoencoder
from training.portraits.dataset import Batches, load
from training.portraits.export import export
from training.portraits.models import ModelConfig, Trainable, build_pipeline
from training.portraits.parts import Parts, prepare
from training.portraits.paths import DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_RUN
from training.portraits.sheet import PROMPTS, contact_sheet
from training.portraits.sheet import generate as draw
from training.portraits.trainer import TrainConfig, Trainer


def build_trainer(
    data: Path, run: Path, config: TrainConfig, model_config: ModelConfig
) -> tuple[Trainer, Parts]:
    """A trainer at the run's last checkpoint, or at the start."""
    portraits = load(data / "train.npz")
    run.mkdir(parents=True, exist_ok=True)
    parts = prepare(portraits, run)
    torch.manual_seed(config.seed)
    model = Trainable(model_config, parts.clip, parts.t5)
    batches = Batches(
        portraits, parts.colors, parts.clip, parts.t5, config.batch, config.seed, config.shift
    )
    trainer = Trainer(model, batches, config, run)
    if trainer.resume():
        print(f"resuming at step {trainer.step}")
    return trainer, parts


def draw_sheet(trainer: Trainer, parts: Parts, path: Path, shift: float) -> None:
    """Draws the sheet's prompts with the running average, at few steps."""
    pipeline = build_pipeline(
        trainer.average, build_autoencoder(parts.colors), parts.clip, parts.t5, shift
    )
    pipeline.to(trainer.device)
    contact_sheet(draw(pipeline, PROMPTS, seed=0, steps=12)).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = TrainConfig()
    parser = argparse.ArgumentParser(description="Train the pixel-portrait model from nothing.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="rendered data")
    parser.add_argument("--run", type=Path, default=DEFAULT_RUN, help="checkpoints and sheets")
    parser.add_argument("--out", type=Path, default=DEFAULT_MODEL, help="diffusers folder")
    parser.add_argument("--word-steps", type=int, default=defaults.word_steps)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch)
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not (args.data / "train.npz").exists():
        generate.generate(args.data, generate.TRAIN_COUNT, generate.HELD_OUT_COUNT, seed=0)
    config = TrainConfig(
        word_steps=args.word_steps,
        steps=args.steps,
        batch=args.batch,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    model_config = ModelConfig()
    trainer, parts = build_trainer(args.data, args.run, config, model_config)
    trainer.run_words()
    trainer.run(
        lambda step: draw_sheet(
            trainer, parts, args.run / f"sheet-{step:06d}.png", model_config.shift
        )
    )
    export(args.run, args.out, model_config)
    evaluate.main(["--model", str(args.out), "--data", str(args.data)])


if __name__ == "__main__":
    main()
