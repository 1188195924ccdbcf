"""Members that share a machine which is not this one: tensors cross the network to it once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from coordinator.nodes.link import NodeLink
from ditmesh.shared_memory import host_id
from ditmesh.v1 import tensor_pb2

# To be sent less than this takes no longer than to wait for a neighbour that is sent it.
_WORTH_BYTES = 256 << 10

_Places = asyncio.Future[tensor_pb2.SharedTensors | None]


class Neighbours:
    """Who passes one request's tensors on, and to whom: of each machine the first member to the
    others.
    """

    def __init__(self, new_bytes: Mapping[NodeLink, int]) -> None:
        """`new_bytes`: how much each member has to be sent, as far as is known."""
        self._passed: dict[NodeLink, _Places] = {}
        self._source: dict[NodeLink, _Places] = {}
        by_host: dict[str, list[NodeLink]] = {}
        for link, nbytes in new_bytes.items():
            host = link.report.host if link.report is not None else ""
            if host and host != host_id() and nbytes >= _WORTH_BYTES:
                by_host.setdefault(host, []).append(link)
        for first, *others in by_host.values():
            if others:
                self._passed[first] = asyncio.get_running_loop().create_future()
                self._source.update(dict.fromkeys(others, self._passed[first]))

    def passes_on(self, link: NodeLink) -> bool:
        """Whether a member is to pass on what it is sent."""
        return link in self._passed

    def passed(self, link: NodeLink, shared: tensor_pb2.SharedTensors | None) -> None:
        """Where its neighbours find it; None: nowhere, or nothing more than was said before."""
        places = self._passed.get(link)
        if places is not None and not places.done():
            places.set_result(shared)

    async def places(
        self, link: NodeLink, wanted: Sequence[int]
    ) -> tensor_pb2.SharedTensors | None:
        """Where a member finds some of the tensors that it wants, once its neighbour has them;
        None: nowhere.
        """
        source = self._source.get(link)
        shared = await asyncio.shield(source) if source is not None else None
        if shared is None:
            return None
        found = [place for place in shared.tensors if place.tensor in wanted]
        if not found:
            return None
        return tensor_pb2.SharedTensors(
            pid=shared.pid, fd=shared.fd, token=shared.token, tensors=found
        )
