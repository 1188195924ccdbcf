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

from training.portraits.dataset import Batch, Batches
from training.portraits.models import Trainable


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to learn."""

    steps: int = 5_500
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 200
    decay_share: float = 0.35
    """The last part of the run, over which the learning rate falls to nothing."""
    weight_decay: float = 0.01
    ema: float = 0.999
    shift: float = 1.5
    seed: int = 0
    save_every: int = 250
    sheet_every: int = 1000

    def learning_rate_at(self, step: int) -> float:
        """Warm-up, then constant, then a straight line to zero."""
        decay_steps = max(1, round(self.steps * self.decay_share))
        left = (self.steps - step) / decay_steps
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
        self.seconds = 0.0
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay), betas=(0.9, 0.99), fused=True
        )

    def run(self, on_sheet: Callable[[int], None] | None = None) -> None:
        """Trains up to ``config.steps``, saving as it goes."""
        config = self.config
        smooth = 0.0
        with tqdm(total=config.steps, initial=self.step, desc="train", unit="step") as bar:
            while self.step < config.steps:
                started = time.perf_counter()
                loss = self.train_step(self.batches.draw(self.step))
                self.seconds += time.perf_counter() - started
                smooth = loss if smooth == 0.0 else 0.98 * smooth + 0.02 * loss
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
                bar.update()
                last = self.step == config.steps
                if last or self.step % config.save_every == 0:
                    self.save()
                if on_sheet is not None and (last or self.step % config.sheet_every == 0):
                    on_sheet(self.step)

    def train_step(self, batch: Batch) -> float:
        """One step of the optimizer; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step)
        clean, noise = batch.clean.to(self.device), batch.noise.to(self.device)
        sigma = batch.sigma.to(self.device)
        level = sigma[:, None, None]
        velocity = self.model(
            (1 - level) * clean + level * noise,
            sigma,
            batch.clip_ids.to(self.device),
            batch.t5_ids.to(self.device),
        )
        loss = nn.functional.mse_loss(velocity, noise - clean)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average()
        return loss.item()

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(
            list(self.average.parameters()), list(self.model.parameters()), 1 - decay
        )

    def save(self) -> None:
        """Writes the checkpoint whole or not at all."""
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
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
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decays matrices only, not biases, norms or embeddings."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        embeds = "embedding" in name or "shared" in name or "relative_attention" in name
        (plain if parameter.ndim < 2 or embeds else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
