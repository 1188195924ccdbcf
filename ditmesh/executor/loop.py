"""The loop that takes a job from a state to its end. Every executor runs this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ditmesh import sampling
from ditmesh.errors import BadResult
from ditmesh.executor.control import GO_ON, Control, StopReason, all_finite
from ditmesh.models.family import LatentLayout
from ditmesh.models.latents import LatentFormat
from ditmesh.sampling import Denoiser, NoiseSource, Plan, State

_FEW = 1024
_NOTHING = nullcontext()

SpanMaker = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Task:
    """A job made ready for this process: tensors on the device, coefficients computed.

    `start` is the state to go on from and `begin` the one the whole job began with.
    `end_step` is where to stop. All latents, the noise and what `denoise` takes and gives are
    arranged as `layout` has them: so they stay until they leave this process.
    """

    plan: Plan
    begin: State
    start: State
    end_step: int
    denoise: Tap
    noise: NoiseSource
    layout: LatentLayout
    latent_format: LatentFormat


class Tap:
    """A denoiser that remembers its newest answer where previews are wanted.

    Else its memory is free for the next one: new memory is slow on a CPU, and scarce on a GPU.
    """

    def __init__(self, denoise: Denoiser, *, remember: bool) -> None:
        self._denoise = denoise
        self._remember = remember
        self.denoised: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """As the denoiser within."""
        denoised = self._denoise(x, sigma)
        if self._remember:
            self.denoised = denoised
        return denoised


@dataclass(frozen=True)
class StepDone:
    """What is published after a step, arranged. Tensors are never written to again."""

    state: State
    sigma: float
    seconds: float
    denoised: Tensor | None
    layout: LatentLayout


@dataclass(frozen=True)
class Outcome:
    """How a run ended, arranged: `stopped` is GO_ON when it reached its end step."""

    state: State
    latent: Tensor
    stopped: StopReason
    layout: LatentLayout


def no_span(name: str) -> AbstractContextManager[None]:
    """No span: for whom nobody asks."""
    return _NOTHING


@torch.no_grad()
def run(
    task: Task,
    control: Control,
    publish: Callable[[StepDone], None],
    span: SpanMaker = no_span,
) -> Outcome:
    """Run steps until the end or until `control` says stop.

    `span` makes the spans "agree", "step" and "finish" of a trace.

    Raises BadResult for a result that is not finite or that is still the noise it began
    with, and whatever the model and the control raise.
    """
    plan, state = task.plan, task.start
    sigmas = plan.sigmas.tolist()
    while True:
        with span("agree"):
            stopped = control.agree(state)
        if stopped != GO_ON or state.step >= task.end_step:
            break
        started = time.monotonic()
        with span("step"):
            state = sampling.step(plan, state, task.denoise, task.noise)
        seconds = time.monotonic() - started
        publish(StepDone(state, sigmas[state.step], seconds, task.denoise.denoised, task.layout))
    latent = state.latent
    if stopped == GO_ON and state.step == plan.steps:
        with span("finish"):
            latent = _checked_result(task, state)
    return Outcome(state, latent, stopped, task.layout)


def _checked_result(task: Task, state: State) -> Tensor:
    latent = sampling.finish(task.plan, state)
    if not all_finite(latent):
        raise BadResult("the finished latent is not finite")
    if task.plan.steps and _equal(latent, task.begin.latent) and latent.any():
        raise BadResult(
            "the finished latent equals the noise it started from: the model did nothing"
        )
    return latent


def _equal(latent: Tensor, other: Tensor) -> bool:
    """As `torch.equal`; a look at a few values spares one at all of memory long unused."""
    few = latent.flatten()[:_FEW], other.flatten()[:_FEW]
    return torch.equal(*few) and torch.equal(latent, other)
