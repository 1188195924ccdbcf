"""What it means that members of an executor fail: the error to tell, of all that came."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio

from coordinator.nodes.link import NodeLink
from ditmesh.errors import (
    BadResult,
    DamagedModel,
    DitmeshError,
    ExecutorFailed,
    GroupLost,
    InvalidRequest,
    JobCancelled,
    RanksDiffer,
    StaleEpoch,
    Unavailable,
    UnknownModel,
)
from ditmesh.rpc_status import from_rpc_error

# A member that ends a stream so is shutting down, cut off, or in another group by now.
_GONE = (Unavailable, StaleEpoch, JobCancelled)


def cause(
    executor: str, members: Sequence[NodeLink], failures: Sequence[tuple[int, BaseException]]
) -> BaseException:
    """The error to tell: what no executor could do, then a death, then the work itself.

    `executor` is "group" or "local", `failures` are errors by rank among its members.
    """
    known = [(rank, translate(error)) for rank, error in failures]
    for _, error in known:
        if isinstance(error, InvalidRequest) or not isinstance(error, DitmeshError):
            return error
    for _, error in known:
        if isinstance(error, RanksDiffer):
            # Before a death, too: it says what the states are worth.
            return error
    for rank, link in enumerate(members):
        if not link.up:
            return lost(executor, members, rank, f"is gone ({link.view.problem})")
    for rank, error in known:
        if isinstance(error, _GONE):
            return lost(executor, members, rank, f"is gone ({error.message})")
    for _, error in known:
        if isinstance(error, BadResult):
            return error
    for _, error in known:
        if isinstance(error, (UnknownModel, DamagedModel)):
            # The group as such is sound, and another executor may have the model.
            return error if executor == "local" else ExecutorFailed(str(error))
    rank, error = known[0]
    return lost(executor, members, rank, f"failed: {error}")


def lost(executor: str, members: Sequence[NodeLink], rank: int, what: str) -> ExecutorFailed:
    """The executor's end by what became of one member."""
    address = members[rank].address
    if executor == "local":
        return ExecutorFailed(f"the local sampler at {address} {what}")
    return GroupLost(f"rank {rank} at {address} {what}")


def translate(error: BaseException) -> BaseException:
    """What a stream ended with as an error of ditmesh; others stay as they are."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return error
    known = from_rpc_error(error, peer="the node")
    if type(known) in _GONE:
        # gRPC's own words: ours are for a user who could check the address.
        return Unavailable(error.details() or "its stream broke")
    return known
