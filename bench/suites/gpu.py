"""On a GPU: a Flux-shaped model through the service and in diffusers' own pipeline.

Nodes run with the options that users have. Both read one file of random weights.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import flux_shaped, jobs
from bench.cluster import BenchCluster
from bench.measure import Contestant, Options, Skipped, alternate
from bench.results import Comparison, Goal, SuiteResult, Table
from ditmesh.client import Client
from ditmesh.models.info import ModelInfo, inspect
from ditmesh.models.loading import load
from ditmesh.models.memory import memory_bytes
from gpu_node.execution import Execution

TITLE = "On a GPU"

_STEPS = 20
_SIZES = (1024, 2048)
_UNSEEN_SIZE = (896, 1152)
_LEAST_SPEEDUP = 1.4
_MOST_FOR_A_NEW_SIZE = 1.1
_PIXELS_A_ROW = 8
_MODEL = "random-flux-dev"
_OURS, _OWN, _OWN_COMPILED = "ditmesh", "diffusers' pipeline", "diffusers' pipeline, compiled"


@dataclass(frozen=True)
class Variant:
    """Nodes with certain options, by the names of `LocalCluster`'s fields."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = _SIZES[:1]


VARIANTS = (
    Variant("eager", sizes=_SIZES),
    Variant("compiled", {"compile": True}, sizes=_SIZES),
    Variant("fp8 weights", {"fp8_weights": True}),
    Variant("fp8 weights, compiled", {"fp8_weights": True, "compile": True}, sizes=_SIZES),
    Variant("compiled, flash", {"compile": True, "attention": "flash"}),
    Variant("compiled, cudnn", {"compile": True, "attention": "cudnn"}, sizes=_SIZES),
    Variant("compiled, efficient", {"compile": True, "attention": "efficient"}),
    Variant("compiled, flash3", {"compile": True, "attention": "flash3"}, sizes=_SIZES),
)
_COLD_HEADER = (
    "nodes",
    "s from start to the first picture",
    "GiB of GPU memory",
    "ms a step, first job of a new size",
    "ms a step, next job of it",
)


def run(options: Options) -> SuiteResult:
    """Measure."""
    info = _written_model(options.folder)
    pipeline = Pipeline(info, torch.device("cuda:0"))
    comparisons: dict[tuple[str, int], Comparison] = {}
    rows: list[tuple[str, float, float, float, float]] = []
    for variant in VARIANTS:
        if Execution(attention=variant.options.get("attention", "auto")).problem("cuda"):
            continue  # a kernel that is not installed
        started = time.monotonic()
        with _cluster(options, variant) as cluster:
            service = Service(cluster.client)
            service.step_ms(_SIZES[0], _SIZES[0])
            cold = time.monotonic() - started
            for size in variant.sizes:
                comparisons[variant.name, size] = _compare(
                    options, variant, service, pipeline, size
                )
            unseen = first_and_later(partial(service.step_ms, *_UNSEEN_SIZE))
            memory = cluster.client.cluster().nodes[0].memory_used_bytes / 2**30
            rows.append((variant.name, cold, memory, *unseen))
    table = Table("Cold start, memory, and a size not seen before", _COLD_HEADER, rows)
    return SuiteResult(list(comparisons.values()), [table], goals(comparisons, rows))


def _written_model(folder: Path) -> ModelInfo:
    """The model, its weights on the disk. Raises Skipped where this machine cannot run it."""
    if not torch.cuda.is_available():
        raise Skipped("it needs a CUDA device, and torch sees none")
    path = folder / "models" / _MODEL
    flux_shaped.write_model(path, flux_shaped.FLUX_DEV)
    info = inspect(path, _MODEL)
    # The service's and the pipeline's.
    wanted = 2 * memory_bytes(info, "bfloat16", height=256, width=256)
    found = torch.cuda.mem_get_info()[0]
    if found < wanted:
        raise Skipped(
            f"it needs {wanted >> 30} GiB of free GPU memory, and there are {found >> 30}"
        )
    room = shutil.disk_usage(folder).free
    if room < info.weight_bytes:
        raise Skipped(f"it needs {info.weight_bytes >> 30} GiB of disk, and there are {room >> 30}")
    shutil.rmtree(path)
    flux_shaped.write_model(path, flux_shaped.FLUX_DEV, torch.device("cuda:0"))
    return inspect(path, _MODEL)


def _compare(
    options: Options, variant: Variant, service: Service, pipeline: Pipeline, size: int
) -> Comparison:
    contestants: dict[str, Contestant] = {
        _OURS: partial(service.step_ms, size, size),
        _OWN: partial(pipeline.step_ms, size, size),
    }
    if variant.name == "compiled":
        contestants[_OWN_COMPILED] = partial(pipeline.step_ms, size, size, compiled=True)
    rounds = options.rounds(5, 2) if size == _SIZES[0] else 2
    series = alternate(contestants, rounds, warmups=1)
    title = f"{size}x{size}, {_STEPS} steps, ditmesh {variant.name}"
    return Comparison(title, "ms a step", series, baseline=_OWN)


def _cluster(options: Options, variant: Variant) -> BenchCluster:
    return BenchCluster(
        options.folder,
        options.folder / "models",
        nodes=1,
        device="cuda",
        preload=[_MODEL],
        execution=variant.options,
    )


def goals(
    comparisons: Mapping[tuple[str, int], Comparison],
    rows: list[tuple[str, float, float, float, float]],
) -> list[Goal]:
    """Never slower, faster when compiled, and no wait at a new size. `rows`: of the table."""
    found = [
        Goal(f"{size}x{size}, eager, to diffusers' pipeline", comparison.ratio(_OURS), 1.0, "x")
        for (mode, size), comparison in comparisons.items()
        if mode == "eager"
    ]
    compiled = comparisons["compiled", _SIZES[0]]
    where = f"{_SIZES[0]}x{_SIZES[0]}, compiled"
    same = compiled.ratio(_OURS) / compiled.ratio(_OWN_COMPILED)
    found.append(Goal(f"{where}, to diffusers' pipeline, compiled", same, 1.0, "x"))
    faster = 1 / compiled.ratio(_OURS)
    what = f"{where}, faster than diffusers' eager pipeline"
    found.append(Goal(what, faster, _LEAST_SPEEDUP, "x", at_least=True))
    for name, _, _, first, later in rows:
        if "compiled" in name:
            what = f"{name}: first job of a new size, to the next"
            found.append(Goal(what, first / later, _MOST_FOR_A_NEW_SIZE, "x"))
    return found


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
        info: ModelInfo,
        device: torch.device,
        *,
        text_tokens: int = 512,
        steps: int = _STEPS,
        backend: str = "inductor",
    ) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

        self._steps = steps
        transformer: Any = load(
            info,
            device=device,
            dtype=torch.bfloat16,
            transformer_class=FluxTransformer2DModel,
        )
        # As diffusers' documentation has it.
        transformer.compile_repeated_blocks(fullgraph=True, dynamic=True, backend=backend)
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
        text = torch.randn(1, text_tokens, info.text_dim, generator=generator)
        pooled = torch.randn(1, info.pooled_dim, generator=generator)
        self._text = text.to(device, torch.bfloat16)
        self._pooled = pooled.to(device, torch.bfloat16)

    @torch.no_grad()
    def step_ms(self, height: int, width: int, *, compiled: bool = False) -> float:
        """One picture, left as a latent; milliseconds a step, the whole call counted."""
        started = time.perf_counter()
        with torch.compiler.set_stance("default" if compiled else "force_eager"):
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
