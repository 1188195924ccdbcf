"""The border of a group's work: what fails inside takes the group with it."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from ditmesh.errors import GroupLost, InvalidRequest
from gpu_node.parallel import torch_groups
from gpu_node.parallel.decisions import ConnectionBroken

if TYPE_CHECKING:
    from gpu_node.parallel.group import Group


class Guard:
    """A context manager; see `Group.collective`. A class, because every step passes it twice.

    Raises:
        GroupLost: for what torch and connections raise when a group is broken; and at
            both ends for a group that was aborted or left.
    """

    def __init__(self, group: Group) -> None:
        self._group = group

    def __enter__(self) -> None:
        group = self._group
        if group.aborted or group.left:
            raise GroupLost(f"rank {group.rank} is no longer in epoch {group.epoch}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        group = self._group
        if error is None:
            if group.aborted:
                raise GroupLost(f"epoch {group.epoch} was aborted on rank {group.rank}")
            return
        if isinstance(error, InvalidRequest):
            return
        collateral = group.aborted
        group.abort()
        if not isinstance(error, RuntimeError | OSError):
            return
        broken = isinstance(error, ConnectionBroken) or torch_groups.is_failure(error)
        if not broken and not collateral:
            return
        reason = torch_groups.first_line(error)
        raise GroupLost(
            f"rank {group.rank} lost the group of epoch {group.epoch}: {reason}"
        ) from error
