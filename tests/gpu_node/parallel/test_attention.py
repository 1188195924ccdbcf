"""Attention kernels by name: what each computes, and which are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from ditmesh.errors import InvalidRequest
from ditmesh.options import ATTENTION
from tests.gpu_node.parallel.cases import EXACT
from tests.ranks import Rank, run_ranks

CPU = torch.device("cpu")


def _scored(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention by its definition, in fp64, and its log-sum-exp."""
    scores = query.double() @ key.double().mT / query.shape[-1] ** 0.5
    return scores.softmax(-1) @ value.double(), scores.logsumexp(-1)


def _compare(_rank: Rank) -> dict[str, float]:
    from gpu_node.parallel import attention

    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 3, 50, 16, generator=generator)
    key, value = (torch.randn(2, 3, 70, 16, generator=generator) for _ in range(2))
    out, lse = _scored(query, key, value)
    worst = {}
    for name in ("auto", "flash", "math"):
        kernel = attention.choose(name, CPU, torch.float32)
        plain, _ = kernel(query, key, value, with_lse=False)
        merged, sums = kernel(query, key, value, with_lse=True)
        assert sums is not None
        assert sums.dtype == torch.float32
        off = [(plain - out).abs().max(), (merged - out).abs().max(), (sums - lse).abs().max()]
        worst[name] = float(max(off))
    return worst


def _refusals(_rank: Rank) -> list[str]:
    from gpu_node.parallel import attention

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for sm_61\nand a stack")

    attention._KERNELS["math"] = broken
    words = []
    for name in ("sage", "cudnn", "math"):
        try:
            attention.choose(name, CPU, torch.float32)
        except InvalidRequest as error:
            words.append(error.message)
    return words


def _troubles(_rank: Rank) -> list[str]:
    from gpu_node.parallel import attention

    def failing(error: Exception) -> Callable[..., Any]:
        def kernel(*_: Any, **__: Any) -> Any:
            raise error

        return kernel

    class Gone:
        def sum(self) -> Any:
            raise RuntimeError("the device is lost")

    words = []
    full, lost = torch.OutOfMemoryError("no memory"), RuntimeError("launch failure")
    for error, query in ((full, torch.zeros(1)), (lost, Gone())):
        attention._KERNELS["math"] = failing(error)
        with mock.patch.object(attention.torch, "zeros", return_value=query):
            try:
                attention.choose("math", CPU, torch.float32)
            except RuntimeError as trouble:
                words.append(str(trouble))
    return words


def _run(function: Callable[[Rank], Any]) -> Any:
    return run_ranks(1, function)[0]


def test_kernels_agree_with_the_definition() -> None:
    """Each kernel of a CPU, with and without the log-sum-exp that rings need."""
    worst = _run(_compare)
    assert set(worst) == {"auto", "flash", "math"}
    assert max(worst.values()) < EXACT


def test_unknown_foreign_and_failing_kernels_are_refused() -> None:
    """The words say which there are, where it would run, or what the kernel said."""
    unknown, foreign, failing = _run(_refusals)
    assert unknown == f"no attention 'sage'; there are: {', '.join(ATTENTION)}"
    assert "it is for GPUs; on a CPU there are auto, flash, math" in foreign
    assert failing == "--attention math: it does not run on cpu: no kernel for sm_61"


def test_a_device_in_trouble_is_no_refusal() -> None:
    """No memory for the moment, or nothing that works: a rank that says so is started again."""
    assert _run(_troubles) == ["no memory", "the device is lost"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["auto", "flash", "cudnn", "efficient", "math"])
def test_kernels_of_a_gpu_agree_with_the_definition(name: str) -> None:
    """In bf16, to what bf16 can hold; lengths that no tile divides; the log-sum-exp in fp32."""
    from tests.gpu_node.parallel.test_parallel_setup import run

    run(
        "import torch\n"
        "from gpu_node.parallel import runtime\n"
        "runtime.prepare('cuda')\n"
        "from gpu_node.parallel import attention\n"
        "from tests.gpu_node.parallel.test_attention import _scored\n"
        "device, dtype = torch.device('cuda:0'), torch.bfloat16\n"
        f"kernel = attention.choose({name!r}, device, dtype)\n"
        "query = torch.randn(2, 3, 50, 128, device=device, dtype=dtype)\n"
        "key, value = (torch.randn(2, 3, 77, 128, device=device, dtype=dtype) for _ in 'kv')\n"
        "out, lse = _scored(query, key, value)\n"
        "plain, _ = kernel(query, key, value, with_lse=False)\n"
        "merged, sums = kernel(query, key, value, with_lse=True)\n"
        "assert (plain - out).abs().max() < 2e-2\n"
        "assert (merged - out).abs().max() < 2e-2\n"
        "assert sums.shape == lse.shape and (sums - lse).abs().max() < 1e-3\n"
    )
