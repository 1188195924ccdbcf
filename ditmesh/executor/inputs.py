"""From a job's messages to the task that the loop runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from ditmesh import sampling
from ditmesh.errors import InvalidRequest
from ditmesh.executor.loop import SpanMaker, Tap, Task
from ditmesh.models.family import Conditioning, Family, Inputs, LatentLayout
from ditmesh.models.info import ModelInfo
from ditmesh.models.model import Model
from ditmesh.models.registry import family
from ditmesh.sampling import Denoiser, GuidedDenoiser, InpaintDenoiser, NoiseSource, Plan, State
from ditmesh.tensors import WireTensor
from ditmesh.torch_tensors import as_torch
from ditmesh.v1 import job_pb2 as pb


class LateModel:
    """A model while another job may still be using the weights: what it is, and where it runs."""

    def __init__(self, info: ModelInfo, device: torch.device) -> None:
        self.info = info
        self.family: Family = family(info.family)
        self.device = device
        self._model: Model | None = None
        self._given: Sequence[Conditioning] = ()
        self._inputs: Sequence[Inputs] = ()

    def bind(self, model: Model, span: SpanMaker) -> None:
        """It is this job's turn: `model` has the weights. `span` makes the span "transformer"."""
        self._model = model
        self._span = span

    def denoised(
        self, layout: LatentLayout, x: Tensor, sigma: Tensor, branches: Sequence[Conditioning]
    ) -> list[Tensor]:
        """See `Model.denoised`. Branches are made ready once, not in each step."""
        assert self._model is not None
        if branches is not self._given:
            self._given = branches
            self._inputs = self._model.inputs(layout, branches)
        with self._span("transformer"):
            return self._model.denoised(x, sigma, self._inputs)


def build_task(spec: pb.JobSpec, tensors: Sequence[WireTensor], model: LateModel) -> Task:
    """Everything a job needs, on the model's device.

    The spec is one that the coordinator has checked: its sigmas are explicit, its latent has
    the model's channels. Raises InvalidRequest for a spec that still cannot be run.
    """
    reader = TensorReader(tensors, model.device)
    process = model.family.process(spec.shift if spec.HasField("shift") else None)
    sigmas = torch.tensor(list(spec.schedule.explicit.sigmas), dtype=torch.float32)
    try:
        plan = sampling.make_plan(spec.sampler, sigmas, process, seed=spec.seed)
    except (ArithmeticError, RuntimeError) as error:
        # Such as steps so small that a sampler's equations have no solution in fp32: no failure
        # of this executor.
        raise InvalidRequest(
            f"{spec.sampler} cannot take these {len(sigmas) - 1} steps: {error}",
            field="job.schedule",
        ) from error
    latent = _latent(spec, reader, model)
    layout = model.family.layout(latent.shape)
    noise = _noise(spec, reader, latent)
    begin = sampling.begin(plan, noise, latent)
    fresh = _fresh_noise(plan, begin, layout)
    begin = begin.map(layout.arrange)
    start = begin
    if spec.HasField("state") and spec.state.sampler_revision == plan.revision:
        start = _state(spec.state, reader).map(layout.arrange)
    denoise = _denoiser(spec, reader, model, layout, latent, noise)
    end = spec.stop_after_step if spec.HasField("stop_after_step") else plan.steps
    return Task(
        plan,
        begin,
        start,
        min(end, plan.steps),
        Tap(denoise, remember=spec.HasField("preview")),
        fresh,
        layout,
        model.info.latent_format,
    )


def conditioning(message: pb.Conditioning, reader: TensorReader) -> Conditioning:
    """A branch's conditioning on the device."""
    if not message.HasField("text"):
        raise InvalidRequest("conditioning has no text embedding", field="conditioning.text")
    guidance = torch.tensor(list(message.guidance), dtype=torch.float32, device=reader.device)
    return Conditioning(
        text=reader[message.text],
        pooled=reader[message.pooled] if message.HasField("pooled") else None,
        guidance=guidance if len(guidance) else None,
        extra={name: reader[index] for name, index in message.extra.items()},
    )


class TensorReader:
    """Index -> torch tensor on the device, each moved once. Nobody writes to them."""

    def __init__(
        self,
        tensors: Sequence[WireTensor],
        device: torch.device,
        kept: Mapping[bytes, Tensor] = MappingProxyType({}),
    ) -> None:
        """`kept`: tensors that are on the device already, by hash."""
        self._tensors = tensors
        self._moved: dict[int, Tensor] = {}
        self._kept = kept
        self.device = device

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._moved:
            tensor = self._tensors[index]
            there = self._kept.get(tensor.spec.sha256)
            self._moved[index] = as_torch(tensor, self.device) if there is None else there
        return self._moved[index]

    def by_hash(self) -> dict[bytes, Tensor]:
        """The tensors that were used and have a hash, to be kept for the next request."""
        hashes = {index: self._tensors[index].spec.sha256 for index in self._moved}
        return {sha256: self._moved[index] for index, sha256 in hashes.items() if sha256}


def _latent(spec: pb.JobSpec, reader: TensorReader, model: LateModel) -> Tensor:
    if spec.WhichOneof("latent") == "latent_tensor":
        return reader[spec.latent_tensor].float()
    empty = spec.empty_latent
    shape = (empty.batch, model.info.latent_channels, empty.height, empty.width)
    return torch.zeros(shape, device=reader.device)


def _noise(spec: pb.JobSpec, reader: TensorReader, latent: Tensor) -> Tensor:
    kind = spec.noise.WhichOneof("kind")
    if kind == "tensor":
        return reader[spec.noise.tensor].float()
    if kind == "none":
        return torch.zeros_like(latent)
    index = list(spec.noise.seeded.batch_index) or None
    return sampling.initial_noise(tuple(latent.shape), spec.seed, batch_index=index).to(
        latent.device
    )


def _fresh_noise(plan: Plan, begin: State, layout: LatentLayout) -> NoiseSource:
    """The noise that the sampler draws: as for the latent's own shape, then arranged."""
    source = sampling.noise_source(plan, begin)

    def arranged(draw: int, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return layout.arrange(source(draw, sigma, sigma_next))

    return arranged


def _state(message: pb.JobState, reader: TensorReader) -> State:
    history: Mapping[str, Tensor] = {name: reader[i] for name, i in message.history.items()}
    return State(
        step=message.step,
        latent=reader[message.latent],
        history=history,
        noise_draws=message.noise_draws,
        revision=message.sampler_revision,
    )


def _denoiser(
    spec: pb.JobSpec,
    reader: TensorReader,
    model: LateModel,
    layout: LatentLayout,
    latent: Tensor,
    noise: Tensor,
) -> Denoiser:
    positive = conditioning(spec.positive, reader)
    negative = conditioning(spec.negative, reader) if spec.negative.HasField("text") else None
    guided = GuidedDenoiser(
        partial(model.denoised, layout),
        positive,
        negative,
        spec.cfg if spec.HasField("cfg") else 1.0,
    )
    if not spec.HasField("noise_mask"):
        return guided
    process = model.family.process(spec.shift if spec.HasField("shift") else None)
    mask = sampling.prepare_mask(reader[spec.noise_mask].float(), tuple(latent.shape))
    kept = sampling.inpaint_noise(spec.sampler, noise, spec.seed)
    return InpaintDenoiser(
        guided,
        process,
        mask=layout.arrange(mask),
        noise=layout.arrange(kept),
        latent_image=layout.arrange(latent),
    )
