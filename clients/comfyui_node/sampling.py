"""One KSampler request: on the cluster if it can be, in the best way there is, else in ComfyUI."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ditmesh.errors import DitmeshError, InvalidRequest

from . import comfy_api
from .dispatcher import ALLOW, Dispatcher
from .eligibility import why_not_remote, why_not_whole
from .fingerprint import model_fingerprint
from .lora import NotSendable, sendable
from .remote_model import make_twin, remote_transformer
from .report import Report
from .request import SamplingRequest
from .transformer import RemoteError, RemoteTransformer, Unsupported
from .whole_job import Level, run_whole_job

_LOG = logging.getLogger("ditmesh")

Show = Callable[[str], None]


class SamplingFailed(RuntimeError):
    """Nobody could sample; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A model on a cluster that a MODEL stands for."""

    dispatcher: Dispatcher
    card: Any
    is_models_own: bool
    """Whether it is the transformer of a MODEL without weights already, on the same terms."""


class NotRecognised(RuntimeError):
    """No model of the cluster is this MODEL."""


def sample(
    request: SamplingRequest, dispatcher: Dispatcher | None, show: Show
) -> tuple[dict[str, Any], Report]:
    """The sampled LATENT, and who made it.

    Raises:
        SamplingFailed: the cluster could not, and ComfyUI may not or has no weights.
        Exception: whatever ComfyUI's own sampler raises, and its exception for Cancel.
    """
    transformer = remote_transformer(request.model)
    if dispatcher is None:
        dispatcher = (
            Dispatcher.from_environment() if transformer is None else transformer.dispatcher
        )
    show(f"Asking {dispatcher.address} ...")
    try:
        target = find_target(request, dispatcher, transformer)
        return _sample_remotely(request, target, show)
    except (DitmeshError, RemoteError, Unsupported, NotSendable, NotRecognised) as error:
        comfy_api.raise_if_cancelled()
        return _sample_in_comfyui(request, dispatcher, transformer, error, show)


def find_target(
    request: SamplingRequest, dispatcher: Dispatcher, transformer: RemoteTransformer | None
) -> Target:
    """The cluster's model that the request's MODEL stands for.

    Raises:
        NotRecognised: there is none.
        DitmeshError: the cluster cannot be asked.
    """
    reason = why_not_remote(request)
    if reason:
        raise Unsupported(reason)
    cluster = dispatcher.cluster()
    if transformer is not None and transformer.dispatcher.address == dispatcher.address:
        own = transformer.dispatcher == dispatcher
        return Target(dispatcher, cluster.model(transformer.model), own)
    # Another cluster may have other weights under the same name.
    fingerprint = (
        model_fingerprint(request.model) if transformer is None else transformer.fingerprint
    )
    if not fingerprint:
        raise NotRecognised("this MODEL is not a Flux.1 in full precision, so it is not recognised")
    same = [card for card in cluster.models if card.fingerprint == fingerprint]
    if not same:
        raise NotRecognised(
            f"the cluster at {dispatcher.address} does not have this MODEL's weights"
        )
    # The same weights may be there twice, and on the group only once.
    return Target(dispatcher, max(same, key=lambda card: card.on_group), False)


def _sample_remotely(
    request: SamplingRequest, target: Target, show: Show
) -> tuple[dict[str, Any], Report]:
    levels = comfy_api.levels(request)
    latent = comfy_api.widened_latent(request)
    reason = why_not_whole(
        request,
        latent,
        size_multiple=target.card.size_multiple,
        samples_on_cpu=comfy_api.samples_on_cpu(request.model),
    ) or _unusual_levels(levels)
    if not reason:
        try:
            return run_whole_job(
                request, latent, Level(levels), target.dispatcher, target.card, show
            )
        except InvalidRequest as error:
            reason = f"the cluster refused the whole job ({error})"
    return _step_by_step(request, target, reason, show)


def _unusual_levels(sigmas: list[float]) -> str:
    if len(sigmas) < 2:
        return "there is no step to take"
    falling = all(a > b for a, b in itertools.pairwise(sigmas))
    return "" if falling else "the schedule repeats a noise level"


def _step_by_step(
    request: SamplingRequest, target: Target, reason: str, show: Show
) -> tuple[dict[str, Any], Report]:
    """ComfyUI's own sampler, on the cluster's transformer."""
    model = request.model
    if not target.is_models_own:
        sendable(model)  # a LoRA that cannot be sent is found out before anything runs
        model = make_twin(model, target.dispatcher, target.card.name)
    transformer = remote_transformer(model)
    assert transformer is not None
    before, started = transformer.calls, time.monotonic()
    show(f"Sampling step by step on {target.dispatcher.address} ...")
    with transformer.one_picture():
        latent = comfy_api.run_ksampler(replace(request, model=model))
    return latent, Report.steps(
        calls=transformer.calls - before,
        seconds=time.monotonic() - started,
        executor=transformer.executor,
        fallback_reason=transformer.fallback_reason,
        reason=reason,
    )


def _sample_in_comfyui(
    request: SamplingRequest,
    dispatcher: Dispatcher,
    transformer: RemoteTransformer | None,
    error: Exception,
    show: Show,
) -> tuple[dict[str, Any], Report]:
    reason = str(error)
    if transformer is not None:
        raise SamplingFailed(
            f"{_sentence(reason)} This MODEL has no weights here, so ComfyUI cannot take over."
        ) from error
    if not dispatcher.comfyui_may_sample:
        raise SamplingFailed(
            f"{_sentence(reason)} The dispatcher's fallback is {dispatcher.fallback!r}; with "
            f"{ALLOW!r} ComfyUI would sample this itself."
        ) from error
    _LOG.warning("ditmesh: ComfyUI samples this itself, because %s", reason)
    show(f"Sampling in ComfyUI: {reason}")
    started = time.monotonic()
    latent = comfy_api.run_ksampler(request)
    return latent, Report.comfyui(seconds=time.monotonic() - started, reason=reason)


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
