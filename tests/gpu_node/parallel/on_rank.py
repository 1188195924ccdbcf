"""What tests have ranks do; each function runs in a rank's own process."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore

from ditmesh import __version__, rendezvous
from ditmesh.errors import GroupLost
from ditmesh.executor.control import StopFlag
from ditmesh.executor.loop import Tap, Task, run
from ditmesh.mesh import MeshSpec
from ditmesh.models.info import inspect
from ditmesh.models.latents import FLUX
from ditmesh.models.registry import family
from ditmesh.sampling import State, make_plan, noise_source
from gpu_node.mesh_control import MeshControl
from gpu_node.parallel import runtime, sockets
from gpu_node.parallel.model import MeshModel, load_transformer
from gpu_node.parallel.traffic import Traffic
from tests.gpu_node.parallel.cases import SINGLE_FILE, Case
from tests.ranks import Rank

SIGMA = 0.7
EVALUATING = "evaluating"
DECIDING = "deciding"
"""In the store: how many ranks have evaluated once and go on."""


def load(rank: Rank, dtype: torch.dtype) -> None:
    """Load the golden model."""
    rank.kept.info = inspect(SINGLE_FILE)
    rank.kept.transformer = load_transformer(rank.kept.info, device="cpu", dtype=dtype)


def join(
    rank: Rank,
    epoch: int,
    meshes: Sequence[MeshSpec],
    timeout_s: float = 30.0,
    world: Sequence[int] = (),
) -> float:
    """Join an epoch, as a member of `world` (default: everyone); returns the seconds it took."""
    members = list(world) or list(range(rank.world_size))
    started = time.monotonic()
    rank.kept.group = runtime.join(
        rank.store,
        epoch=epoch,
        rank=members.index(rank.rank),
        world_size=len(members),
        meshes=meshes,
        timeout_s=timeout_s,
    )
    return time.monotonic() - started


def leave(rank: Rank) -> int:
    """Leave the group; returns how many descriptors this process has once their number rests."""
    rank.kept.group.leave()
    found = []
    while len(set(found[-10:])) != 1 or len(found) < 10:
        # gloo's own thread closes some of them.
        time.sleep(0.01)
        found.append(len(os.listdir("/proc/self/fd")))
    return found[-1]


def model(rank: Rank, mesh: MeshSpec) -> MeshModel:
    """The loaded model on a mesh of the current group."""
    return MeshModel(rank.kept.info, rank.kept.transformer, rank.kept.group, mesh)


def evaluate(rank: Rank, mesh: MeshSpec, case: Case) -> list[Tensor] | str | None:
    """The first rank's denoised branches, a hash of them on the others, None outside the mesh."""
    if rank.kept.group.rank not in mesh.ranks:
        return None
    x_BCHW, branches = case.inputs()
    outputs = model(rank, mesh).evaluate(x_BCHW, SIGMA, branches)
    return outputs if rank.kept.group.rank == mesh.ranks[0] else digest(outputs)


def predict(rank: Rank, mesh: MeshSpec, x: Tensor, sigma: Tensor, cond: Any) -> Tensor | None:
    """The raw output on a mesh, from each of its ranks."""
    if rank.kept.group.rank not in mesh.ranks:
        return None
    return model(rank, mesh).predict(x, sigma, cond)


def digest(outputs: Sequence[Tensor]) -> str:
    """A hash of the exact bits."""
    whole = hashlib.sha256()
    for output in outputs:
        whole.update(output.contiguous().numpy().tobytes())
    return whole.hexdigest()


def shares(rank: Rank, mesh: MeshSpec, case: Case) -> dict[str, Any] | None:
    """What this rank computes in one evaluation: tokens, attention shapes, and its traffic."""
    if rank.kept.group.rank not in mesh.ranks:
        return None
    seen: dict[str, Any] = {"queries": [], "keys": [], "tokens": []}
    transformer = rank.kept.transformer
    kernel = transformer.kernel

    def watching(query: Tensor, key: Tensor, value: Tensor, *, with_lse: bool) -> Any:
        seen["queries"].append(tuple(query.shape))
        seen["keys"].append(tuple(key.shape))
        return kernel(query, key, value, with_lse=with_lse)

    hook = transformer.x_embedder.register_forward_hook(
        lambda _module, inputs, _output: seen["tokens"].append(inputs[0].shape[1])
    )
    transformer.kernel = watching
    x_BCHW, branches = case.inputs()
    try:
        with Traffic() as traffic:
            model(rank, mesh).evaluate(x_BCHW, SIGMA, branches)
    finally:
        transformer.kernel = kernel
        hook.remove()
    return {**seen, "bytes": dict(traffic.received_bytes), "calls": dict(traffic.calls)}


def decide(rank: Rank, mesh: MeshSpec, times: int) -> list[list[int]] | None:
    """Decisions in which every rank has another opinion."""
    group = rank.kept.group
    if group.rank not in mesh.ranks:
        return None
    return [group.decide(mesh, [group.rank, step, -(2**62)]) for step in range(times)]


def use(rank: Rank, mesh: MeshSpec) -> str:
    """Evaluate on a mesh without asking whether this rank is in it."""
    x_BCHW, branches = Case(4, 4, (2,)).inputs()
    try:
        model(rank, mesh).evaluate(x_BCHW, SIGMA, branches)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def bad_input_then_good(rank: Rank, mesh: MeshSpec, case: Case) -> str:
    """A latent that the patch does not divide, refused by all, then a sound one."""
    _, branches = case.inputs()
    try:
        model(rank, mesh).evaluate(torch.zeros(1, 16, 5, 4), SIGMA, branches)
    except Exception as error:
        refused = type(error).__name__
    evaluate(rank, mesh, case)
    return refused


class Clock(Traffic):
    """Notes when the newest collective of its block began."""

    began = 0.0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        now, before = time.monotonic(), self.calls.total()
        try:
            return super().__torch_dispatch__(func, types, args, kwargs)
        finally:
            if self.calls.total() > before:
                self.began = now


@dataclass(frozen=True)
class Lost:
    """How a rank lost its group, by its own clock, and how many evaluations had gone well."""

    evaluations: int
    began_at: float
    """When its last collective began."""
    raised_at: float
    reason: str

    @property
    def waited_s(self) -> float:
        """Seconds in the last collective."""
        return self.raised_at - self.began_at


def until_lost(rank: Rank, mesh: MeshSpec, case: Case) -> Lost:
    """Evaluate for ever; returns how that ended."""
    x_BCHW, branches = case.inputs()
    loaded = model(rank, mesh)
    count = 0
    with Clock() as clock:
        while True:
            try:
                loaded.evaluate(x_BCHW, SIGMA, branches)
            except GroupLost as error:
                return Lost(count, clock.began, time.monotonic(), error.message)
            count += 1
            if count == 1:
                rank.store.add(EVALUATING, 1)


def abort_while_waiting(rank: Rank, mesh: MeshSpec, after_s: float) -> tuple[float, str]:
    """Wait in a collective for a rank that never comes, until a side thread aborts."""
    aborted: list[float] = []

    def abort() -> None:
        aborted.append(time.monotonic())
        rank.kept.group.abort()

    timer = threading.Timer(after_s, abort)
    timer.start()
    try:
        rank.kept.group.decide(mesh, [1])
    except GroupLost as error:
        timer.join()
        return time.monotonic() - aborted[0], error.message
    raise AssertionError("the decision came")


def decide_until_lost(rank: Rank, mesh: MeshSpec) -> tuple[float, str]:
    """Hear of decisions until there are no more; how long the last wait was, and how it ended."""
    group = rank.kept.group
    rank.store.add(DECIDING, 1)
    while True:
        began = time.monotonic()
        try:
            group.decide(mesh, [1])
        except GroupLost as error:
            return time.monotonic() - began, error.message
        if group.rank == mesh.ranks[0]:
            time.sleep(0.01)


def fail_locally(rank: Rank, mesh: MeshSpec, case: Case, culprit: int) -> tuple[str, float]:
    """One rank runs out of memory in the middle of a forward pass; the others wait for it. Returns
    the error, and the seconds since the last collective began.
    """

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    if rank.rank == culprit:
        rank.kept.transformer.single_transformer_blocks[0].register_forward_hook(fail)
    with Clock() as clock:
        try:
            evaluate(rank, mesh, case)
        except Exception as error:
            return type(error).__name__, time.monotonic() - clock.began
    raise AssertionError("it did not fail")


def miscompute(rank: Rank, mesh: MeshSpec, case: Case, culprit: int) -> tuple[list[int], str]:
    """A run of four steps, of which one rank does the second one wrongly. Returns the steps that
    this one told of, and how it ended.
    """
    x_BCHW, branches = case.inputs()
    loaded, group = model(rank, mesh), rank.kept.group
    layout = loaded.family.layout(x_BCHW.shape)
    inputs = loaded.inputs(layout, branches[:1])
    passes: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        (denoised,) = loaded.denoised(x, sigma, inputs)
        passes.append(float(sigma))
        return denoised + 1e-4 if group.rank == culprit and len(passes) == 2 else denoised

    process = family("flux").process(None)
    plan = make_plan("euler", torch.linspace(1.0, 0.0, 5), process, seed=0)
    begin = State(0, layout.arrange(x_BCHW))
    noise = noise_source(plan, begin)
    tap = Tap(denoise, remember=False)
    task = Task(plan, begin, begin, plan.steps, tap, noise, layout, FLUX)
    told: list[int] = []
    try:
        run(
            task,
            MeshControl(group, mesh, StopFlag(), "job"),
            lambda done: told.append(done.state.step),
        )
    except GroupLost as error:
        return told, type(error).__name__
    return told, "done"


def try_to_join(rank: Rank, epoch: int, world_size: int, timeout_s: float) -> tuple[float, str]:
    """Join a group whose other ranks never come."""
    started = time.monotonic()
    try:
        runtime.join(
            rank.store,
            epoch=epoch,
            rank=rank.rank,
            world_size=world_size,
            meshes=[MeshSpec(tuple(range(world_size)), world_size)],
            timeout_s=timeout_s,
        )
    except GroupLost as error:
        return time.monotonic() - started, error.message
    raise AssertionError("it joined")


def abort_while_joining(rank: Rank, mesh: MeshSpec, after_s: float) -> tuple[float, str]:
    """Join epoch 1, while a side thread aborts whatever this process is in."""
    runtime.abort()  # in no group: nothing to do
    timer = threading.Timer(after_s, runtime.abort)
    timer.start()
    started = time.monotonic()
    try:
        runtime.join(rank.store, epoch=1, rank=0, world_size=2, meshes=[mesh], timeout_s=30.0)
    except GroupLost as error:
        timer.join()
        # Its connection may have been closed; nodes connect anew for every epoch.
        rank.store = TCPStore(rank.store.host, rank.store.port, is_master=False)
        return time.monotonic() - started, error.message
    raise AssertionError("it joined")


def come_and_go(rank: Rank, epoch: int, version: str = __version__) -> None:
    """Say at the store that this rank has come, and do nothing more."""
    PrefixStore(rendezvous.prefix(epoch), rank.store).set(rendezvous.arrival(rank.rank), version)


def addresses(rank: Rank) -> list[str]:
    """The hosts on which this process listens."""
    return [host for host, _ in sockets.listening()]


def installed(rank: Rank) -> dict[str, bool]:
    """Which of xfuser's, yunchang's and torch's globals are set."""
    import torch.distributed as dist
    from xfuser.core.distributed import parallel_state, runtime_state
    from yunchang.globals import PROCESS_GROUP

    names = [name for name in vars(parallel_state) if name.isupper() and name.startswith("_")]
    return {
        **{name: getattr(parallel_state, name) is not None for name in names},
        "_RUNTIME": runtime_state._RUNTIME is not None,
        "ULYSSES_PG": PROCESS_GROUP.ULYSSES_PG is not None,
        "RING_PG": PROCESS_GROUP.RING_PG is not None,
        "torch": dist.is_initialized(),
    }


def join_alone(rank: Rank, epoch: int, meshes: Sequence[MeshSpec]) -> str:
    """Try to be a group of one; returns the error that this meets."""
    try:
        runtime.join(rank.store, epoch=epoch, rank=0, world_size=1, meshes=meshes, timeout_s=5.0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"
