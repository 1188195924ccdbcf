"""The loop that takes a job from a state to its end. Every executor runs this one."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ditmesh import sampling
from ditmesh.errors import BadResult
from ditmesh.executor.control import GO_ON, Control, StopReason, all_finite
from ditmesh.models.latents import LatentFormat
from ditmesh.sampling import Denoiser, Plan, State

_FEW = 1024

SpanMaker = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Task:
    """A job made ready for this process: tensors on the device, coefficients computed.

    `start` is the state to go on from and `begin` the one the whole job began with.
    `end_step` is where to stop.
    """

    plan: Plan
    begin: State
    start: State
    end_step: int
    denoise: Tap
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
    """What is published after a step. Tensors are never written to again."""

    state: State
    sigma: float
    seconds: float
    denoised: Tensor | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `stopped` is GO_ON when it reached its end step."""

    state: State
    latent: Tensor
    stopped: StopReason


def no_span(name: str) -> AbstractContextManager[None]:
    """No span: for whom nobody asks."""
    return nullcontext()


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
    noise = sampling.noise_source(plan, state)
    while True:
        with span("agree"):
            stopped = control.agree(state)
        if stopped != GO_ON or state.step >= task.end_step:
            break
        started = time.monotonic()
        with span("step"):
            state = sampling.step(plan, state, task.denoise, noise)
        sigma = float(plan.sigmas[state.step])
        publish(StepDone(state, sigma, time.monotonic() - started, task.denoise.denoised))
    if stopped != GO_ON or state.step < plan.steps:
        return Outcome(state, state.latent, stopped)
    with span("finish"):
        return Outcome(state, _checked_result(task, state), stopped)


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


def to_device(state: State, device: torch.device) -> State:
    """The state with its latent and history on `device`."""
    return replace(
        state,
        latent=state.latent.to(device),
        history={name: tensor.to(device) for name, tensor in state.history.items()},
    )
