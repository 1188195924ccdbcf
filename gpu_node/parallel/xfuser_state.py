"""xfuser's and yunchang's globals, set from outside: which groups a forward pass talks to.

xfuser's own start-up knows equal splits of the whole world only, makes every group anew without a
timeout, and resets not all of what it sets. Here the groups come ready made, one `Place` is
installed at a time, and `clear` leaves nothing behind. Import after `xfuser_setup.prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from xfuser.core.distributed import parallel_state, runtime_state
from xfuser.core.distributed.group_coordinator import SequenceParallelGroupCoordinator
from yunchang.globals import PROCESS_GROUP

_SEQUENCE = "_SP"
_SINGLES = ("_WORLD", "_TP", "_PP", "_CFG", "_DP", "_FS", "_MODEL_REPLICA")


class SequenceGroup(SequenceParallelGroupCoordinator):  # type: ignore[misc]  # xfuser is untyped
    """One rank's view of the ranks that share its sequence, over groups that already exist.

    A group of one rank is None: xfuser never communicates in it.
    """

    def __init__(
        self,
        ranks: tuple[int, ...],
        rank: int,
        device: torch.device,
        *,
        ulysses: int,
        group: ProcessGroup | None,
        ulysses_group: ProcessGroup | None,
        ring_group: ProcessGroup | None,
    ) -> None:
        self.rank = rank
        self.ranks = list(ranks)
        self.rank_in_group = ranks.index(rank)
        self.world_size = len(ranks)
        self.local_rank = device.index or 0
        self.device = device
        self.device_group = group
        self.cpu_group = group
        self.ulysses_group = ulysses_group
        self.ring_group = ring_group
        self.ulysses_world_size = ulysses
        self.ulysses_rank = self.rank_in_group % ulysses
        self.ring_world_size = self.world_size // ulysses
        self.ring_rank = self.rank_in_group // ulysses

    @cached_property
    def alone(self) -> SequenceGroup:
        """The same rank's view if it shared with nobody."""
        return alone(self.rank, self.device)

    def all_gather(self, input_: Tensor, dim: int = 0) -> Tensor:
        """Everybody's `input_`, joined along `dim`; xfuser's own uses what torch deprecates."""
        if self.device_group is None:
            return input_
        parts = [torch.empty_like(input_) for _ in range(self.world_size)]
        dist.all_gather(parts, input_, group=self.device_group)
        return torch.cat(parts, dim=dim)


def alone(rank: int, device: torch.device) -> SequenceGroup:
    """The view of a rank that shares with nobody."""
    return SequenceGroup(
        (rank,), rank, device, ulysses=1, group=None, ulysses_group=None, ring_group=None
    )


@dataclass
class _RuntimeState:
    """What xfuser's attention and Flux wrapper ask of its runtime state, and no more."""

    fp8_comms: None = None
    attention_backend: None = None
    split_text_embed_in_sp: bool = True
    num_pipeline_patch: int = 1
    max_condition_sequence_length: int = 0
    runtime_config: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(use_spargeattn_head_balance=False)
    )


def install(sequence: SequenceGroup) -> None:
    """Have xfuser use `sequence` until another is installed, or `clear`."""
    if getattr(parallel_state, _SEQUENCE) is not sequence:
        _install(sequence)


@contextmanager
def installed(sequence: SequenceGroup) -> Iterator[None]:
    """Have xfuser use `sequence` inside the block; what was installed before comes back after.

    Every other kind of parallelism is set to one rank: the cfg split is ours, see `model`.
    """
    before = getattr(parallel_state, _SEQUENCE)
    _install(sequence)
    try:
        yield
    finally:
        if before is None:
            clear()
        else:
            _install(before)


def current() -> SequenceGroup:
    """The installed view."""
    sequence = parallel_state.get_sp_group()
    assert isinstance(sequence, SequenceGroup)
    return sequence


def clear() -> None:
    """Forget every group."""
    for name in (_SEQUENCE, *_SINGLES):
        setattr(parallel_state, name, None)
    runtime_state._RUNTIME = None
    PROCESS_GROUP.ULYSSES_PG = None
    PROCESS_GROUP.RING_PG = None


def _install(sequence: SequenceGroup) -> None:
    setattr(parallel_state, _SEQUENCE, sequence)
    single = sequence.alone
    for name in _SINGLES:
        setattr(parallel_state, name, single)
    runtime_state._RUNTIME = _RuntimeState()
    PROCESS_GROUP.ULYSSES_PG = sequence.ulysses_group
    PROCESS_GROUP.RING_PG = sequence.ring_group
