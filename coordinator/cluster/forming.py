"""Has the members of a new group join it, and finds out who kept it from forming."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc.aio

from coordinator.cluster.rendezvous import Rendezvous
from coordinator.config import Timing
from coordinator.nodes import awake
from coordinator.nodes.link import NodeLink
from ditmesh.errors import DitmeshError, GroupLost, Loading
from ditmesh.mesh import MeshSpec
from ditmesh.rpc_status import from_rpc_error
from ditmesh.v1 import node_pb2 as pb

# For the members that did not fail first to show whether they have come.
_AFTERMATH_S = 0.5


@dataclass(frozen=True)
class NotFormed:
    """Why a group did not form, and by which members' fault, as far as that is known.

    `loading`: members that are yet to be asked again, because they load weights.
    """

    error: BaseException
    culprits: tuple[str, ...]
    loading: tuple[NodeLink, ...] = ()


async def join_all(
    links: Sequence[NodeLink],
    epoch: int,
    meshes: Sequence[MeshSpec],
    rendezvous: Rendezvous,
    timing: Timing,
) -> NotFormed | None:
    """Have the nodes join, rank by position. None once all have."""
    orders = [
        pb.JoinGroupRequest(
            epoch=epoch,
            rank=rank,
            world_size=len(links),
            rendezvous=rendezvous.address,
            meshes=[
                pb.MeshSpec(ranks=m.ranks, ulysses=m.ulysses, ring=m.ring, cfg=m.cfg)
                for m in meshes
            ],
            timeout_seconds=timing.collective_timeout,
        )
        for rank in range(len(links))
    ]
    joins = [
        asyncio.create_task(_join(link, order, timing.join_timeout))
        for link, order in zip(links, orders, strict=True)
    ]
    failures = await _failures(joins)
    if not failures:
        return None
    loading = [rank for rank, error in failures.items() if _is_loading(error)]
    if loading:
        return NotFormed(failures[loading[0]], (), tuple(links[rank] for rank in loading))
    arrived = await asyncio.to_thread(rendezvous.arrived, epoch, len(links))
    # Those that failed before they came to the rendezvous, or else those that others waited for.
    missing = [rank for rank in range(len(links)) if rank not in arrived]
    culprits = [rank for rank in missing if rank in failures] or missing
    error = next(failures[rank] for rank in (*culprits, *failures) if rank in failures)
    return NotFormed(error, tuple(links[rank].address for rank in culprits))


def in_words(error: BaseException) -> str:
    """What a node failed with."""
    if isinstance(error, grpc.aio.AioRpcError):
        return str(from_rpc_error(error, peer="a node"))
    return str(error) if isinstance(error, DitmeshError) else f"{type(error).__name__}: {error}"


def _is_loading(error: BaseException) -> bool:
    known = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
    return isinstance(known, Loading)


async def _join(link: NodeLink, order: pb.JoinGroupRequest, timeout_s: float) -> None:
    try:
        # gRPC's own deadline would go on while this process stands still.
        async with awake.Timeout(timeout_s):
            await link.stub.JoinGroup(order)
    except TimeoutError:
        raise GroupLost(f"{link.address} did not join in {timeout_s:g} s") from None


async def _failures(joins: Sequence[asyncio.Task[None]]) -> dict[int, BaseException]:
    """The errors by rank once one has failed and the others had a moment to; none if all join."""
    try:
        done, pending = await asyncio.wait(joins, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            done |= (await asyncio.wait(pending, timeout=_AFTERMATH_S))[0]
    finally:
        for join in joins:
            join.cancel()
    return {
        rank: error
        for rank, join in enumerate(joins)
        if join in done and (error := join.exception()) is not None
    }
