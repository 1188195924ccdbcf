"""Counting what a rank receives from others, without a change to what it runs.

with Traffic() as traffic:
    model.evaluate(x, sigma, branches)
traffic.received_bytes, traffic.calls
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Sees every operation inside its block and adds up the collectives.

    `received_bytes` and `calls` count by the name of the collective. Meant for tests and for
    measuring; it costs some microseconds for each operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.received_bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total_bytes(self) -> int:
        """Bytes received in all."""
        return self.received_bytes.total()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count, then run the operation as it is."""
        received = _received(func, args)
        if received is not None:
            name, count = received
            self.calls[name] += 1
            self.received_bytes[name] += count
        return func(*args, **(kwargs or {}))


def _received(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, int] | None:
    """A collective's name and the bytes that it brings from other ranks."""
    ops = torch.ops
    if func is ops._c10d_functional.all_to_all_single.default:
        data, group = args[0], args[-1]
        size = _group_size(group)
        return "all_to_all", data.nbytes * (size - 1) // size
    if func is ops._c10d_functional.all_gather_into_tensor.default:
        data, size = args[0], args[1]
        return "all_gather", data.nbytes * (size - 1)
    if func is ops.c10d.allgather_.default:
        outputs: list[list[Tensor]] = args[0]
        return "all_gather", sum(out.nbytes for out in outputs[0][1:])
    if func is ops.c10d.broadcast_.default:
        return "broadcast", sum(tensor.nbytes for tensor in args[0])
    return None


def _group_size(name: str) -> int:
    module: Any = c10d
    return int(module._resolve_process_group(name).size())
