"""Stand-ins for the objects of ComfyUI that the pure parts of the pack look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from clients.comfyui_node.request import SamplingRequest


class CONST:
    """The mark of a rectified flow."""


class ModelSamplingFlux:
    """Flux's schedule, shifted by exp(shift)."""

    def __init__(self, shift: float = 1.15) -> None:
        self.shift = shift


class ModelSamplingDiscreteFlow:
    """The other spelling, shifted by the factor itself."""

    def __init__(self, shift: float = 1.0, multiplier: float = 1.0) -> None:
        self.shift, self.multiplier = shift, multiplier


class FluxSampling(ModelSamplingFlux, CONST):
    """As a MODEL has it."""


class DiscreteSampling(ModelSamplingDiscreteFlow, CONST):
    """As ModelSampling nodes make it."""


@dataclass
class Patcher:
    """A MODEL: what a ModelPatcher shows."""

    model: Any = field(default_factory=lambda: SimpleNamespace(diffusion_model=None))
    model_options: dict[str, Any] = field(default_factory=lambda: {"transformer_options": {}})
    object_patches: dict[str, Any] = field(default_factory=dict)
    object_patches_backup: dict[str, Any] = field(default_factory=dict)
    hook_patches: dict[str, Any] = field(default_factory=dict)
    forced_hooks: Any = None
    injections: dict[str, Any] = field(default_factory=dict)
    weight_wrapper_patches: dict[str, Any] = field(default_factory=dict)
    wrappers: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    patches: dict[str, Any] = field(default_factory=dict)
    backup: dict[str, Any] = field(default_factory=dict)
    patches_uuid: str = "one"
    load_device: Any = field(default_factory=lambda: torch.device("cpu"))
    sampling: Any = field(default_factory=FluxSampling)

    def get_model_object(self, name: str) -> Any:
        """Objects that nodes replace."""
        if name == "latent_format":
            return SimpleNamespace(process_in=lambda x: x * 2, process_out=lambda x: x / 2)
        return self.object_patches.get(name, self.sampling)


def conditioning(batch: int = 1, **options: Any) -> list[list[Any]]:
    """A CONDITIONING of one entry."""
    return [[torch.ones(batch, 4, 8), {"pooled_output": torch.ones(batch, 6), **options}]]


def request(**changes: Any) -> SamplingRequest:
    """A request that a cluster can take as a whole job."""
    values: dict[str, Any] = {
        "model": Patcher(),
        "seed": 7,
        "steps": 4,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": conditioning(guidance=3.5),
        "negative": conditioning(),
        "latent": {"samples": torch.zeros(1, 16, 8, 8)},
        **changes,
    }
    return SamplingRequest(**values)


def card(name: str, has_pipeline: bool = False, **more: Any) -> Any:
    """A cluster's model, as its client tells of it."""
    values = {"family": "flux", "parameters": 12_000_000_000, "on_group": True, "on_local": False}
    return SimpleNamespace(name=name, has_pipeline=has_pipeline, **{**values, **more})
