"""A whole sampling job on the cluster, with ComfyUI's progress bar, previews and Cancel."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from ditmesh.client import Accepted, Conditioning, Done, Progress, Queued
from ditmesh.errors import DitmeshError

from . import comfy_api
from .dispatcher import Dispatcher
from .eligibility import flow_shift
from .lora import sendable
from .report import Report
from .request import SamplingRequest
from .waiting import watch

_CANCEL_S = 5.0
"""How long a cancelled job's end is waited for."""


@dataclass(frozen=True)
class Level:
    """The noise levels of a job, as ComfyUI computes them from the MODEL."""

    sigmas: list[float]

    @property
    def steps(self) -> int:
        """Steps between them."""
        return len(self.sigmas) - 1


def run_whole_job(
    request: SamplingRequest,
    latent: Any,
    levels: Level,
    dispatcher: Dispatcher,
    card: Any,
    show: Any,
) -> tuple[dict[str, Any], Report]:
    """The sampled LATENT, and who made it.

    `latent` is the request's, [B,C,H,W] in ComfyUI's latent space with the model's channels.

    Raises:
        DitmeshError: the cluster did not finish the job.
        NotSendable: a LoRA that the cluster cannot merge.
        Exception: ComfyUI's own, when the user pressed Cancel.
    """
    bar = comfy_api.StepBar(request.model, levels.steps)
    job = dispatcher.client().start(
        deadline_s=dispatcher.deadline_s,
        preview_every=1 if bar.shows_previews else 0,
        **job_options(request, latent, levels, card.name, dispatcher.cluster_fallback),
    )

    def cancel() -> None:
        with contextlib.suppress(DitmeshError):
            job.cancel(timeout_s=_CANCEL_S)

    result = None
    try:
        for event in watch(job, check=comfy_api.raise_if_cancelled, abandon=cancel):
            if isinstance(event, (Accepted, Queued)):
                _show_place(event.position, dispatcher, show)
            elif isinstance(event, Progress):
                if event.step == 1:
                    show(f"Sampling on {dispatcher.address} ...")
                bar.advance(event.step, event.steps, event.preview)
            elif isinstance(event, Done):
                result = event.result
    finally:
        job.close()
    assert result is not None
    samples = comfy_api.from_model_space(request.model, result.latent)
    return {**request.latent, "samples": samples}, Report.whole(result.summary)


def job_options(
    request: SamplingRequest, latent: Any, levels: Level, model: str, fallback: str
) -> dict[str, Any]:
    """The request as the options of a ditmesh job."""
    guided = not math.isclose(request.cfg, 1.0)
    options: dict[str, Any] = {
        "model": model,
        "sampler": request.sampler_name,
        "sigmas": levels.sigmas,
        "seed": request.seed,
        "cfg": float(request.cfg) if guided else 1.0,
        "positive": _conditioning(request.positive),
        "negative": _conditioning(request.negative) if guided else None,
        "latent": comfy_api.to_model_space(request.model, latent),
        "shift": flow_shift(request.model.get_model_object("model_sampling")),
        "fallback": fallback,
        **sendable(request.model),
    }
    if request.disable_noise:
        options["noise"] = False
    elif request.latent.get("batch_index") is not None:
        options["batch_index"] = [int(index) for index in request.latent["batch_index"]]
    mask = request.latent.get("noise_mask")
    if mask is not None:
        options["noise_mask"] = comfy_api.prepared_mask(mask, latent.shape)
    return options


def _conditioning(entries: Any) -> Conditioning:
    ((embedding, options),) = entries
    return Conditioning(
        text=embedding,
        pooled=options.get("pooled_output"),
        guidance=float(options["guidance"]) if "guidance" in options else None,
    )


def _show_place(position: int, dispatcher: Dispatcher, show: Any) -> None:
    if position:
        jobs = "1 job" if position == 1 else f"{position} jobs"
        show(f"Waiting at {dispatcher.address}: {jobs} before this one")
    else:
        show(f"Next in line at {dispatcher.address} ...")
