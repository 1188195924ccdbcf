"""Ranks without any service: processes on cores of their own that evaluate a transformer.

with RankGroup(2, config, meshes) as group:
    seconds = group.evaluate(meshes[1], branches=1)
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from coordinator.cluster.rendezvous import Rendezvous
from ditmesh import heap
from ditmesh.mesh import MeshSpec
from ditmesh.models.family import Conditioning

_TIMEOUT_S = 120.0
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Work:
    """One evaluation: latent rows and columns, text tokens, guidance branches."""

    rows: int
    columns: int
    text_tokens: int
    branches: int = 1


@dataclass(frozen=True)
class Answer:
    """What one rank says of an evaluation: seconds, and bytes that it received."""

    seconds: float
    received_bytes: int = 0
    collectives: int = 0


class RankGroup:
    """Processes that have joined one group and hold the same random transformer."""

    def __init__(
        self, world_size: int, config: Mapping[str, Any], meshes: Sequence[MeshSpec]
    ) -> None:
        """`config`: arguments of diffusers' Flux transformer. Rank i is kept on core i, modulo the
        cores that there are.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["bench.rank_preload"])
        self._rendezvous = Rendezvous(_HOST)
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            mine, theirs = context.Pipe()
            place = (rank, world_size, self._rendezvous.address, dict(config), tuple(meshes))
            process = context.Process(target=_serve, args=(theirs, *place), daemon=True)
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def __enter__(self) -> RankGroup:
        for pipe in self._pipes:
            _hear(pipe)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.kill()
            process.join()

    def evaluate(
        self, meshes: Sequence[MeshSpec], work: Work, *, count_traffic: bool = False
    ) -> list[Answer]:
        """Each of the meshes, which share no rank, does the work; all begin at once."""
        place = {rank: mesh for mesh in meshes for rank in mesh.ranks}
        for rank, mesh in place.items():
            self._pipes[rank].send((mesh, work, count_traffic))
        return [_hear(self._pipes[rank]) for rank in place]


def _store(address: str) -> Any:
    host, _, port = address.rpartition(":")
    return dist.TCPStore(  # type: ignore[attr-defined] # exported, but not by name
        host, int(port), is_master=False, timeout=timedelta(seconds=_TIMEOUT_S)
    )


def _hear(pipe: Connection) -> Any:
    if not pipe.poll(_TIMEOUT_S):
        raise TimeoutError("a rank does not answer")
    answer = pipe.recv()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _serve(
    pipe: Connection,
    rank: int,
    world_size: int,
    address: str,
    config: dict[str, Any],
    meshes: tuple[MeshSpec, ...],
) -> None:
    """A rank's whole life."""
    from gpu_node.parallel import runtime

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    heap.keep_freed()  # as a node does
    torch.set_num_threads(1)
    group = runtime.join(
        _store(address),
        epoch=1,
        rank=rank,
        world_size=world_size,
        meshes=meshes,
        timeout_s=_TIMEOUT_S,
    )
    transformer = _random_transformer(config)
    pipe.send("ready")
    while True:
        try:
            mesh, work, count_traffic = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_evaluate(transformer, config, group, mesh, work, count_traffic))
        except Exception as error:
            pipe.send(error)


def _random_transformer(config: dict[str, Any]) -> torch.nn.Module:
    from gpu_node.parallel.runtime import transformer_class

    torch.manual_seed(0)
    transformer = transformer_class("flux")(**config).eval().requires_grad_(False)
    return transformer


def _evaluate(
    transformer: torch.nn.Module,
    config: dict[str, Any],
    group: Any,
    mesh: MeshSpec,
    work: Work,
    count_traffic: bool,
) -> Answer:
    from gpu_node.parallel.model import MeshModel
    from gpu_node.parallel.traffic import Traffic

    info: Any = SimpleNamespace(family="flux", num_heads=config["num_attention_heads"])
    model = MeshModel(info, transformer, group, mesh)
    latent_channels = config["in_channels"] // 4
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, latent_channels, work.rows, work.columns, generator=generator)
    text_width, pooled_width = config["joint_attention_dim"], config["pooled_projection_dim"]
    branches = [
        Conditioning(
            text=torch.randn(1, work.text_tokens, text_width, generator=generator),
            pooled=torch.randn(1, pooled_width, generator=generator),
            guidance=None,
            extra={},
        )
        for _ in range(work.branches)
    ]
    group.decide(mesh, [0])  # nobody begins before all are here
    if count_traffic:
        with Traffic() as traffic:
            model.evaluate(x, 0.5, branches)
        return Answer(0.0, traffic.total_bytes, traffic.calls.total())
    started = time.perf_counter()
    model.evaluate(x, 0.5, branches)
    return Answer(time.perf_counter() - started)
