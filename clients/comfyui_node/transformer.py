"""The transformer of a weightless MODEL: a module whose forward pass is a call to the cluster."""

from __future__ import annotations

import collections
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

import torch

from ditmesh.client import Conditioning
from ditmesh.errors import DeadlineExceeded, DitmeshError, JobCancelled, Unavailable

from . import comfy_api
from .dispatcher import Dispatcher
from .eligibility import why_transformer_not_remote
from .lora import sendable
from .waiting import wait_for

PATCH_SIZE = 2
_REMEMBERED_CONDITIONINGS = 8


class RemoteError(RuntimeError):
    """A transformer call that the cluster did not answer; the message says what to do."""


class Unsupported(RuntimeError):
    """Something that a node asks of the transformer and no cluster can do."""


class RemoteTransformer(torch.nn.Module):
    """Stands where ComfyUI expects a diffusion model; has its names of weights, but no weights.

    x [B,C,H,W], timestep [B], context [B,T,D], y [B,P] and guidance [B] are what ComfyUI passes
    to Flux; what is passed beyond them is refused, because it would change the picture.
    """

    patch_size = PATCH_SIZE

    def __init__(
        self,
        dispatcher: Dispatcher,
        model: str,
        weights: Mapping[str, tuple[int, ...]],
        fingerprint: str = "",
    ) -> None:
        """`weights`: names and shapes, as stock nodes that patch weights look for them; none
        where they are not known. `fingerprint`: of the cluster's weights, if it told.
        """
        super().__init__()
        self.dtype = torch.float32
        self.dispatcher = dispatcher
        self.model = model
        self.fingerprint = fingerprint
        self.calls = 0
        """Transformer calls answered so far."""
        self.executor = ""
        """Who answered last, in the cluster's words."""
        self.fallback_reason = ""
        self._weights = dict(weights)
        self._ends_at: float | None = None
        self._owner: weakref.ref[Any] | None = None
        self._stream: Any = None
        self._stream_patches: Any = None
        self._conditionings: collections.deque[_Remembered] = collections.deque(
            maxlen=_REMEMBERED_CONDITIONINGS
        )

    def belongs_to(self, base: Any) -> None:
        """Tell the module which of ComfyUI's models it is the transformer of."""
        self._owner = weakref.ref(base)

    @contextmanager
    def one_picture(self) -> Iterator[None]:
        """Meanwhile the dispatcher's time limit is that of all calls together, not of each."""
        limit = self.dispatcher.deadline_s
        self._ends_at = None if limit is None else monotonic() + limit
        try:
            yield
        finally:
            self._ends_at = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            weights = self.__dict__.get("_weights", ())
            if any(weight.startswith(f"{name}.") for weight in weights):
                raise AttributeError(
                    f"A node asks for the weights {name!r} of {self.model!r}, which are on a "
                    "ditmesh cluster and not here: hooks, for example, change weights while "
                    "sampling. Remove that node, or load the model in ComfyUI."
                ) from None
            raise

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        # Without names in the state dict, ComfyUI drops every LoRA and only logs it.
        if not self._weights:
            raise Unsupported(
                f"The cluster does not tell the names of {self.model!r}'s weights, so no LoRA can "
                "be put on it. Update the cluster."
            )
        for name, shape in self._weights.items():
            destination[prefix + name] = torch.empty(shape, device="meta")

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        ref_latents: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> torch.Tensor:
        """The transformer's output [B,C,H,W], on the device and in the type of `x`.

        Raises:
            Unsupported: a patch, control or input that the cluster cannot take.
            RemoteError: the cluster did not answer.
        """
        options = transformer_options or {}
        run = comfy_api.with_model_wrappers(self._forward, self, options)
        output: torch.Tensor = run(
            x, timestep, context, y, guidance, ref_latents, control, options, **extra
        )
        return output

    def _forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor | None,
        y: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
        ref_latents: Any = None,
        control: Any = None,
        transformer_options: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> torch.Tensor:
        given = {"reference images": ref_latents, "a ControlNet": control, **extra}
        self._refuse(given, transformer_options or {})
        if context is None:
            raise Unsupported("The cluster's model needs a prompt; none reached the transformer.")
        padded = comfy_api.pad_to_patch_size(x, PATCH_SIZE)
        conditioning = self._conditioning(context, y, guidance)
        output = self._call(padded.to(torch.float32), timestep.tolist(), conditioning)
        answer = torch.from_numpy(output).to(x.device, x.dtype)
        return answer[:, :, : x.shape[2], : x.shape[3]]

    def _refuse(self, given: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        patcher = self._patcher()
        reason = "" if patcher is None else why_transformer_not_remote(patcher)
        for name in ("patches", "patches_replace"):
            if not reason and any((options.get(name) or {}).values()):
                reason = f"a node patches the transformer ({', '.join(options[name])})"
        passed = sorted(name for name, value in given.items() if value is not None)
        if not reason and passed:
            reason = f"the transformer is given {', '.join(passed)}"
        if reason:
            raise Unsupported(
                f"The model {self.model!r} runs on a ditmesh cluster, which cannot do this: "
                f"{reason}. Remove that node, or load the model in ComfyUI."
            )

    def _patcher(self) -> Any:
        base = None if self._owner is None else self._owner()
        return getattr(base, "current_patcher", None)

    def _call(self, x: torch.Tensor, timestep: Sequence[float], conditioning: Conditioning) -> Any:
        limit = self._time_left()
        stream = self._open()
        try:
            output = wait_for(
                lambda: stream.predict(x, timestep, conditioning, timeout_s=limit),
                check=comfy_api.raise_if_cancelled,
                abandon=self.close,
            )
        except JobCancelled:
            comfy_api.raise_if_cancelled()
            raise
        except DitmeshError as error:
            self.close()
            if limit is not None and isinstance(error, DeadlineExceeded):
                raise self._too_late() from error
            if isinstance(error, Unavailable):
                self.dispatcher.hang_up()
            raise RemoteError(
                f"The cluster at {self.dispatcher.address} did not compute {self.model!r}: {error}"
            ) from error
        self.calls += 1
        self.executor, self.fallback_reason = stream.executor, stream.fallback_reason
        return output

    def _time_left(self) -> float | None:
        """Seconds that the next call may take. Raises RemoteError when there are none left."""
        if self._ends_at is None:
            return self.dispatcher.deadline_s
        left = self._ends_at - monotonic()
        if left <= 0:
            raise self._too_late()
        return left

    def _too_late(self) -> RemoteError:
        return RemoteError(
            f"The cluster at {self.dispatcher.address} did not finish within the dispatcher's "
            f"time limit of {self.dispatcher.timeout_s:g} s."
        )

    def _open(self) -> Any:
        """The stream for this model with the LoRA that it has now."""
        patcher = self._patcher()
        patched = patcher is not None and bool(patcher.patches)
        version = patcher.patches_uuid if patched else None
        if self._stream is not None and self._stream_patches != version:
            self.close()
        if self._stream is None:
            self._stream = self.dispatcher.client().predict_stream(
                self.model,
                fallback=self.dispatcher.cluster_fallback,
                **(sendable(patcher) if patched else {}),
            )
            self._stream_patches = version
        return self._stream

    def close(self) -> None:
        """Hang up; the next call connects again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _conditioning(
        self, context: torch.Tensor, y: torch.Tensor | None, guidance: torch.Tensor | None
    ) -> Conditioning:
        """The conditioning on the wire; that of an earlier call when it is the same, because
        hashing it takes longer than comparing.
        """
        values = None if guidance is None else guidance.float().tolist()
        for known in self._conditionings:
            if known.is_same(context, y, values):
                return known.conditioning
        remembered = _Remembered(context, y, values)
        self._conditionings.append(remembered)
        return remembered.conditioning


class _Remembered:
    """One conditioning as ComfyUI passed it, and as it was sent."""

    def __init__(
        self, text: torch.Tensor, pooled: torch.Tensor | None, guidance: list[float] | None
    ) -> None:
        self.text, self.pooled, self.guidance = text, pooled, guidance
        self.conditioning = Conditioning(
            text=_shared(text),
            pooled=None if pooled is None else _shared(pooled),
            guidance=guidance,
        )

    def is_same(
        self, text: torch.Tensor, pooled: torch.Tensor | None, guidance: list[float] | None
    ) -> bool:
        return (
            self.guidance == guidance
            and _equal(self.text, text)
            and ((self.pooled is None) == (pooled is None))
            and (pooled is None or _equal(self.pooled, pooled))
        )


def _equal(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    return a is not None and a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)


def _shared(rows: torch.Tensor) -> torch.Tensor:
    """One row in place of many equal ones: ComfyUI repeats a prompt for every picture."""
    return rows[:1] if rows.shape[0] > 1 and bool((rows == rows[:1]).all()) else rows
