"""On a GPU: a Flux-shaped model through the service and in diffusers' own pipeline."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import flux_shaped, jobs
from bench.cluster import BenchCluster
from bench.measure import Contestant, Options, Skipped, alternate
from bench.results import Comparison, Goal, SuiteResult, Table
from ditmesh.client import Client
from ditmesh.models.flux_checkpoint import FluxConfig

TITLE = "On a GPU"

_STEPS = 20
_SIZES = (1024, 2048)
_UNSEEN_SIZE = (896, 1152)
_LEAST_SPEEDUP = 1.4
_PIXELS_A_ROW = 8
_MODEL = f"{flux_shaped.PREFIX}flux-dev"
_OURS, _OWN = "ditmesh", "diffusers' pipeline"


def run(options: Options) -> SuiteResult:
    """Measure."""
    if not torch.cuda.is_available():
        raise Skipped("it needs a CUDA device, and torch sees none")
    models = options.folder / "models"
    flux_shaped.write_model(models / _MODEL, flux_shaped.FLUX_DEV)
    pipeline = Pipeline(flux_shaped.FLUX_DEV, torch.device("cuda:0"))
    comparisons: dict[tuple[str, int], Comparison] = {}
    rows: list[list[str | float]] = []
    for mode in ("eager", "compiled"):
        started = time.monotonic()
        with _cluster(options, models, compiled=mode == "compiled") as cluster:
            cold = time.monotonic() - started
            service = Service(cluster.client)
            for size in _SIZES:
                contestants: dict[str, Contestant] = {
                    _OURS: partial(service.step_ms, size, size),
                    _OWN: partial(pipeline.step_ms, size, size),
                }
                series = alternate(contestants, options.rounds(5, 2), warmups=1)
                title = f"{size}x{size}, {_STEPS} steps, ditmesh {mode}"
                comparison = Comparison(title, "ms a step", series, baseline=_OWN)
                comparisons[mode, size] = comparison
            unseen = first_and_later(partial(service.step_ms, *_UNSEEN_SIZE))
            node = cluster.client.cluster().nodes[0]
            rows.append([mode, cold, node.memory_used_bytes / 2**30, *unseen])
    header = (
        "nodes",
        "s from start to ready",
        "GiB of GPU memory",
        "ms a step, first job of a new size",
        "ms a step, next job of it",
    )
    table = Table("Cold start, memory, and a size not seen before", header, rows)
    return SuiteResult(list(comparisons.values()), [table], _goals(comparisons))


def _cluster(options: Options, models: Path, *, compiled: bool) -> BenchCluster:
    environment = {flux_shaped.COMPILE_VARIABLE: "1"} if compiled else {}
    return BenchCluster(
        options.folder,
        models,
        nodes=1,
        device="cuda",
        preload=[_MODEL],
        environment=environment,
    )


def _goals(comparisons: dict[tuple[str, int], Comparison]) -> list[Goal]:
    goals = [
        Goal(f"{size}x{size}, eager, to diffusers' pipeline", comparison.ratio(_OURS), 1.0, "x")
        for (mode, size), comparison in comparisons.items()
        if mode == "eager"
    ]
    faster = 1 / comparisons["compiled", _SIZES[0]].ratio(_OURS)
    what = f"{_SIZES[0]}x{_SIZES[0]}, compiled, faster than diffusers' eager pipeline"
    return [*goals, Goal(what, faster, _LEAST_SPEEDUP, "x", at_least=True)]


def first_and_later(step_ms: Callable[[], float]) -> tuple[float, float]:
    """What a step takes in the first job of a kind, and in the next: compiling shows."""
    return step_ms(), step_ms()


class Service:
    """Jobs through a client."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seeds: Iterator[int] = itertools.count()
        self._conditioning = jobs.fresh_conditioning(0)

    def step_ms(self, height: int, width: int) -> float:
        """One job of so many pixels; milliseconds a step, the whole job counted."""
        started = time.perf_counter()
        self._client.sample(
            model=_MODEL,
            positive=self._conditioning,
            size=(1, height // _PIXELS_A_ROW, width // _PIXELS_A_ROW),
            steps=_STEPS,
            seed=next(self._seeds),
            fallback="forbid",
        )
        return 1e3 * (time.perf_counter() - started) / _STEPS


class Pipeline:
    """The same in diffusers, with no text encoders and no autoencoder."""

    def __init__(
        self,
        config: FluxConfig,
        device: torch.device,
        *,
        text_tokens: int = 512,
        steps: int = _STEPS,
    ) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

        self._steps = steps
        transformer = flux_shaped.random_transformer(
            FluxTransformer2DModel, config, device, torch.bfloat16
        )
        self._pipeline: Any = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            transformer=transformer,
            vae=None,
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
        )
        self._pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        text = torch.randn(1, text_tokens, config.text_dim, generator=generator)
        pooled = torch.randn(1, config.pooled_dim, generator=generator)
        self._text = text.to(device, torch.bfloat16)
        self._pooled = pooled.to(device, torch.bfloat16)

    @torch.no_grad()
    def step_ms(self, height: int, width: int) -> float:
        """One picture, left as a latent; milliseconds a step, the whole call counted."""
        started = time.perf_counter()
        latent = self._pipeline(
            prompt_embeds=self._text,
            pooled_prompt_embeds=self._pooled,
            height=height,
            width=width,
            num_inference_steps=self._steps,
            output_type="latent",
        ).images
        latent.cpu()  # waits for the GPU, as whoever wants the picture does
        return 1e3 * (time.perf_counter() - started) / self._steps
