"""A job continued from any state gives the bits of the unbroken run."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ditmesh.sampling import (
    SAMPLERS,
    Flow,
    Plan,
    State,
    begin,
    finish,
    job_sigmas,
    make_plan,
    noise_source,
    step,
)
from tests.sampling.denoisers import Curved, run

ALL = sorted(SAMPLERS)
STEPS = 7


def job(sampler: str) -> tuple[Plan, State]:
    """A plan and its first state; two images, so that noise for a batch counts."""
    flow = Flow.flux()
    sigmas = job_sigmas(flow, sampler=sampler, scheduler="simple", steps=STEPS)
    plan = make_plan(sampler, sigmas, flow, seed=77)
    noise = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    return plan, begin(plan, noise, torch.zeros_like(noise))


def to_bytes(state: State) -> bytes:
    """The state as a file, with nothing but its five fields."""
    numbers = {"step": state.step, "draws": state.noise_draws, "revision": state.revision}
    tensors = {"latent": state.latent, **{f"history.{k}": v for k, v in state.history.items()}}
    data: bytes = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        {"numbers": json.dumps(numbers)},
    )
    return data


def from_bytes(data: bytes) -> State:
    """The state from its file."""
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    numbers = json.loads(header["__metadata__"]["numbers"])
    tensors = safetensors.torch.load(data)
    return State(
        step=numbers["step"],
        latent=tensors.pop("latent"),
        history={name.removeprefix("history."): tensor for name, tensor in tensors.items()},
        noise_draws=numbers["draws"],
        revision=numbers["revision"],
    )


def unbroken(sampler: str) -> tuple[Plan, list[State]]:
    """All states of a job, from the first to the last."""
    plan, state = job(sampler)
    states, noise = [state], noise_source(plan, state)
    while state.step < plan.steps:
        state = step(plan, state, Curved(), noise)
        states.append(state)
    return plan, states


@pytest.mark.parametrize("sampler", ALL)
def test_every_state_continues_to_the_same_bits(sampler: str) -> None:
    """After each step: through bytes, with a new plan and a new noise source, to the end."""
    plan, states = unbroken(sampler)
    expected = finish(plan, states[-1])
    for state in states:
        again, _ = job(sampler)
        continued = run(again, from_bytes(to_bytes(state)), Curved())
        assert torch.equal(finish(again, continued), expected)


def test_a_fresh_process_continues_to_the_same_bits(tmp_path: Path) -> None:
    """Nothing that a process remembers matters; one process takes up all samplers' jobs."""
    script = (
        "import sys, pathlib; from tests.sampling.test_resume import continue_files; "
        "continue_files(pathlib.Path(sys.argv[1]))"
    )
    for name in ALL:
        (tmp_path / name).write_bytes(to_bytes(unbroken(name)[1][3]))
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=120)
    for name in ALL:
        plan, states = unbroken(name)
        latent = safetensors.torch.load_file(tmp_path / f"{name}.out")["latent"]
        assert torch.equal(latent, finish(plan, states[-1])), name


def continue_files(folder: Path) -> None:
    """In the fresh process: each file's state to its end."""
    for path in sorted(folder.iterdir()):
        plan, _ = job(path.name)
        latent = finish(plan, run(plan, from_bytes(path.read_bytes()), Curved()))
        safetensors.torch.save_file({"latent": latent}, path.with_suffix(".out"))


@pytest.mark.parametrize("sampler", ALL)
def test_a_step_is_pure(sampler: str) -> None:
    """The same state stepped again, later and out of order, gives the same bits; none changes."""
    plan, states = unbroken(sampler)
    before = [to_bytes(state) for state in states]
    noise = noise_source(plan, states[0])
    for state, after in reversed(list(itertools.pairwise(states))):
        again = step(plan, state, Curved(), noise)
        assert to_bytes(again) == to_bytes(after)
    assert [to_bytes(state) for state in states] == before


@pytest.mark.parametrize("sampler", ALL)
def test_the_state_carries_what_the_sampler_says(sampler: str) -> None:
    """History is fp32 and of the latent's shape, and gone after the last step."""
    plan, states = unbroken(sampler)
    declared = SAMPLERS[sampler].history
    for state in states[:-1]:
        assert state.history.keys() == {k for k, since in declared.items() if since <= state.step}
        assert all(fits(tensor, state.latent) for tensor in state.history.values())
    assert states[-1].history == {}
    assert plan.revision == states[-1].revision == SAMPLERS[sampler].revision


def fits(tensor: Tensor, latent: Tensor) -> bool:
    """Same shape, fp32."""
    return tensor.shape == latent.shape and tensor.dtype == torch.float32
