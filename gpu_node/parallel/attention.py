"""Attention kernels by name. Import after `xfuser_setup.prepare`.

    kernel = attention.choose("cudnn", torch.device("cuda:0"), torch.bfloat16)
    out, lse = kernel(query, key, value, with_lse=False)

Shapes: B batch, H heads, S tokens, D head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from xfuser.core.distributed.attention_backend import (
    ATTENTION_FUNCTION_REGISTRY,
    AttentionBackendType,
)

from ditmesh.errors import InvalidRequest
from gpu_node.execution import Execution
from gpu_node.parallel.torch_groups import first_line

aten = torch.ops.aten


class Kernel(Protocol):
    """Softmax attention on one device."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Output [B,H,S,D] of inputs of that shape; if asked, the log-sum-exp, fp32 [B,H,S]."""
        ...


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel of a name of `ditmesh.options.ATTENTION`, tried once on the device.

    Raises:
        InvalidRequest: there is none of that name, or it does not run here; says why.
        RuntimeError: the device has no memory left, or does not work; that may pass.
    """
    if name not in _KERNELS:
        raise InvalidRequest(f"no attention {name!r}; there are: {', '.join(_KERNELS)}")
    problem = Execution(attention=name).problem(device.type)
    if problem:
        raise InvalidRequest(problem)
    kernel = _KERNELS[name]
    query = torch.zeros(1, 2, 64, 128, dtype=dtype, device=device)
    try:
        for with_lse in (False, True):
            kernel(query, query, query, with_lse=with_lse)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, NameError, TypeError, AssertionError) as error:
        # What a kernel raises where device, dtype or its package's version are not right. A device
        # that does nothing else either raises here.
        query.sum().item()
        why = first_line(error)
        raise InvalidRequest(f"--attention {name}: it does not run on {device}: {why}") from error
    return kernel


def auto(
    query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """What torch chooses; flash attention where the log-sum-exp is needed."""
    if not with_lse:
        return scaled_dot_product_attention(query, key, value), None
    if query.device.type == "cuda" and query.dtype == torch.float32:
        return _efficient(query, key, value, with_lse=True)  # flash takes no fp32
    return _flash(query, key, value, with_lse=True)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    else:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(query, key, value)
    return out, lse


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_efficient_attention(query, key, value, None, with_lse)
    # The kernel pads its log-sum-exp to a multiple of 32.
    return out, lse[..., : query.shape[2]] if with_lse else None


def _cudnn(
    query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(query, key, value, None, with_lse)
    return out, lse.squeeze(-1) if with_lse else None


def _math(
    query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """By the definition, for comparing with: it stores all scores."""
    if not with_lse:
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(query, key, value), None
    scores = query.float() @ key.float().mT * query.shape[-1] ** -0.5
    lse = scores.logsumexp(-1, keepdim=True)
    return ((scores - lse).exp() @ value.float()).to(query.dtype), lse.squeeze(-1)


def _installed(backend: AttentionBackendType) -> Kernel:
    """A kernel of a package of its own, by way of xfuser, which knows how each is called."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        out, lse = ATTENTION_FUNCTION_REGISTRY[backend](query, key, value, 0.0, False)
        return out, lse if with_lse else None

    return kernel


_KERNELS: dict[str, Kernel] = {
    "auto": auto,
    "flash": _flash,
    "cudnn": _cudnn,
    "efficient": _efficient,
    "math": _math,
    "flash2": _installed(AttentionBackendType.FLASH),
    "flash3": _installed(AttentionBackendType.FLASH_3),
    "flash4": _installed(AttentionBackendType.FLASH_4),
}
