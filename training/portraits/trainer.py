"""The training loop: flow matching with logit-normal noise levels, AdamW and an EMA.

The state after a step depends on nothing but the state before it and the step's number, so that a
run that was stopped and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from training.portraits.dataset import Batch, Batches, Words
from training.portraits.models import Trainable
from training.portraits.readout import Reading, Readout


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn."""

    word_steps: int = 1_500
    word_batch: int = 64
    steps: int = 12_000
    batch: int = 16
    learning_rate: float = 1.2e-3
    warmup: int = 100
    decay_share: float = 0.35
    """The last part of each stage, over which the learning rate falls to nothing."""
    text_rate: float = 0.3
    """Learning rate of the text encoders beside the transformer's, once they know their words."""
    weight_decay: float = 0.01
    ema: float = 0.997
    readout_weight: float = 0.3
    shift: float = 3.0
    seed: int = 0
    save_every: int = 100
    sheet_every: int = 1000

    def learning_rate_at(self, step: int) -> float:
        """Rate of the transformer at a step of the joint stage."""
        return self._rate(step, self.steps)

    def word_rate_at(self, step: int) -> float:
        """Rate of the text encoders at a step of their own stage."""
        return self._rate(step, self.word_steps)

    def _rate(self, step: int, steps: int) -> float:
        """Warm-up, then constant, then a straight line to zero."""
        left = (steps - step) / max(1, round(steps * self.decay_share))
        return self.learning_rate * max(0.0, min(1.0, (step + 1) / self.warmup, left))


class Trainer:
    """Owns the model, its running average and the optimizer."""

    def __init__(self, model: Trainable, batches: Batches, config: TrainConfig, folder: Path):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.batches = batches
        self.config = config
        self.checkpoint = folder / "checkpoint.pt"
        self.step = 0
        self.word_step = 0
        self.seconds = 0.0
        self.readout = Readout(self.model.t5.config.d_model).to(self.device)
        groups = _parameter_groups(self.model.transformer, config.weight_decay, rate=1.0)
        for encoder in (self.model.clip, self.model.t5, self.readout):
            groups += _parameter_groups(encoder, config.weight_decay, rate=config.text_rate)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)

    def run(self, on_sheet: Callable[[int], None] | None = None) -> None:
        """Trains up to ``config.steps``, saving as it goes."""
        config = self.config
        smooth: tuple[float, ...] = ()
        with tqdm(total=config.steps, initial=self.step, desc="train", unit="step") as bar:
            while self.step < config.steps:
                started = time.perf_counter()
                losses = self.train_step(self.batches.draw(self.step))
                self.seconds += time.perf_counter() - started
                smooth = tuple(
                    0.98 * old + 0.02 * new
                    for old, new in zip(smooth or losses, losses, strict=True)
                )
                bar.set_postfix(loss=f"{smooth[0]:.4f}", words=f"{smooth[1]:.3f}", refresh=False)
                bar.update()
                last = self.step == config.steps
                if last or self.step % config.save_every == 0:
                    self.save()
                if on_sheet is not None and (last or self.step % config.sheet_every == 0):
                    on_sheet(self.step)

    def run_words(self) -> None:
        """Trains the text encoders alone, on what captions say, up to ``config.word_steps``."""
        config = self.config
        smooth = 0.0
        with tqdm(total=config.word_steps, initial=self.word_step, desc="words") as bar:
            while self.word_step < config.word_steps:
                started = time.perf_counter()
                loss = self.words_step(self.batches.draw_words(self.word_step, config.word_batch))
                self.seconds += time.perf_counter() - started
                smooth = 0.95 * smooth + 0.05 * loss if smooth else loss
                bar.set_postfix(words=f"{smooth:.3f}", refresh=False)
                bar.update()
                if self.word_step == config.word_steps or self.word_step % config.save_every == 0:
                    self.save()

    def words_step(self, words: Words) -> float:
        """One step of the text encoders alone; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.word_rate_at(self.word_step)
        loss = self._words_loss(words, *self._encode(words))
        torch.autograd.backward(loss)
        self._clip_text()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.word_step += 1
        self._update_average(self.word_step)
        return loss.item()

    def _encode(self, words: Words) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model.encode(words.clip_ids.to(self.device), words.t5_ids.to(self.device))

    def _words_loss(self, words: Words, pooled: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        target = {name: values.to(self.device) for name, values in words.attributes.items()}
        reading: Reading = self.readout(pooled, text, target)
        return reading.loss

    def _clip_text(self) -> None:
        nn.utils.clip_grad_norm_([*self.model.clip.parameters(), *self.model.t5.parameters()], 1.0)

    def train_step(self, batch: Batch) -> tuple[float, float]:
        """One step of the optimizer; returns the losses of pictures and of words."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self.config.learning_rate_at(self.step)
        clean, noise = batch.clean.to(self.device), batch.noise.to(self.device)
        sigma = batch.sigma.to(self.device)
        level = sigma[:, None, None]
        pooled, text = self._encode(batch)
        velocity = self.model((1 - level) * clean + level * noise, sigma, pooled, text)
        loss = nn.functional.mse_loss(velocity, noise - clean)
        words = self._words_loss(batch, pooled, text)
        torch.autograd.backward(loss + self.config.readout_weight * words)
        nn.utils.clip_grad_norm_(self.model.transformer.parameters(), 1.0)
        self._clip_text()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average(self.step)
        return loss.item(), words.item()

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.model.parameters()), 1 - decay
        )

    def save(self) -> None:
        """Writes the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            "step": self.step,
            "word_step": self.word_step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "readout": self.readout.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> bool:
        """Takes up the checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.readout.load_state_dict(state["readout"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.word_step = state["step"], state["word_step"]
        self.seconds = state["seconds"]
        return True


def _parameter_groups(model: nn.Module, weight_decay: float, rate: float) -> list[dict[str, Any]]:
    """Decays matrices only, not biases, norms or embeddings."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        embeds = "embedding" in name or "shared" in name or "relative_attention" in name
        (plain if parameter.ndim < 2 or embeds else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "rate": rate},
        {"params": plain, "weight_decay": 0.0, "rate": rate},
    ]
