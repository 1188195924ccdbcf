"""Compiled blocks: the results of eager ones on any mesh, and nothing compiled in a job.

The compiler's front end does its work; what it hands on runs as it is, so that no C++ compiler is
needed, and is counted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ditmesh.errors import ExecutorFailed
from ditmesh.mesh import MeshSpec
from ditmesh.models import fp8
from ditmesh.models.family import Conditioning
from ditmesh.models.registry import family
from tests.gpu_node.parallel import on_rank
from tests.ranks import Rank, Ranks, run_ranks

CONFIG: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 12,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
BLOCKS = 5
ALONE, ULYSSES, RING = MeshSpec((0,)), MeshSpec((0, 1), ulysses=2), MeshSpec((0, 1), ring=2)
SIZES = ((16, 16, 16, 1), (18, 22, 77, 1), (64, 64, 32, 1), (12, 20, 32, 3), (8, 8, 9, 2))
"""Latent rows and columns, text tokens, batch; some divide by two ranks, others do not."""
SINGLE_TOKENS = (4, 4, 1, 1)
"""One text token: a size that torch compiles for itself."""


class Counting:
    """A compiler's back end that counts what it is given and how often that runs."""

    def __init__(self) -> None:
        self.graphs = self.calls = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run


def _make(*, in_eight_bits: bool = False) -> Any:
    from gpu_node.parallel.transformer import ExactFlux

    torch.manual_seed(0)
    transformer = ExactFlux(**CONFIG).eval().requires_grad_(False)
    if in_eight_bits:
        fp8.keep_blocks(transformer, torch.float32)
    return transformer


def _forward(transformer: Any, size: tuple[int, int, int, int]) -> Tensor:
    height, width, text, batch = size
    generator = torch.Generator().manual_seed(height * width)
    x = torch.randn(batch, 16, height, width, generator=generator)
    cond = Conditioning(
        torch.randn(batch, text, 24, generator=generator),
        torch.randn(batch, 12, generator=generator),
    )
    flux = family("flux")
    layout = flux.layout(x.shape)
    inputs = flux.inputs(transformer, layout, cond)
    with torch.no_grad():
        return flux.forward(transformer, layout.arrange(x), torch.full((batch,), 0.7), inputs)


def _on_meshes(rank: Rank) -> dict[str, Any]:
    """Sizes on meshes, eager and compiled, and in a transformer that is loaded later."""
    from gpu_node.parallel import compiling

    meshes = [mesh for mesh in (ALONE, ULYSSES, RING) if rank.rank in mesh.ranks]
    group = rank.kept.group
    transformer, counting = _make(), Counting()
    eager = {}
    for mesh in meshes:
        group.use(mesh)
        with group.collective():
            eager[mesh] = [_forward(transformer, size) for size in SIZES]
    compiling.compile_blocks(transformer, backend=counting)
    at_load = counting.graphs
    counting.calls, worst = 0, 0.0
    for mesh in meshes:
        group.use(mesh)
        with group.collective():
            for size, wanted in zip(SIZES, eager[mesh], strict=True):
                off = (_forward(transformer, size) - wanted).abs().max()
                worst = max(worst, float(off))
    calls, forwards = counting.calls, len(meshes) * len(SIZES)
    rank.kept.transformer, rank.kept.counting = _make(), counting
    compiling.compile_blocks(rank.kept.transformer, backend=counting)
    return {
        "at_load": at_load,
        "later": counting.graphs - at_load,
        "compiled_calls": calls,
        "blocks": forwards * BLOCKS,
        "worst": worst,
    }


def _in_another_epoch(rank: Rank) -> tuple[int, bool]:
    """A group that has formed anew: graphs compiled for it, and whether results are the same."""
    transformer, counting = rank.kept.transformer, rank.kept.counting
    graphs, outputs = counting.graphs, []
    for epoch in (2, 3):
        rank.kept.group.leave()
        on_rank.join(rank, epoch, [ULYSSES])
        rank.kept.group.use(ULYSSES)
        with rank.kept.group.collective():
            outputs.append(_forward(transformer, SIZES[1]))
    return counting.graphs - graphs, torch.equal(*outputs)


def test_no_size_text_batch_mesh_or_group_compiles_anything() -> None:
    """Two kinds of block, a picture and a batch: four graphs when a model is loaded, then none.

    Every block of every forward pass runs compiled, and gives what it gives uncompiled.
    """
    with Ranks(2) as ranks:
        ranks.run(on_rank.join, 1, [ALONE, ULYSSES, RING])
        for told in ranks.run(_on_meshes):
            assert told["at_load"] == 4
            assert told["later"] == 0
            assert told["compiled_calls"] == told["blocks"]
            assert told["worst"] < 1e-6
        assert ranks.run(_in_another_epoch) == [(0, True)] * 2


def _changed_weights(rank: Rank) -> dict[str, Any]:
    """Weights in eight bits, changed in their place after compiling; and a lone token."""
    from gpu_node.parallel import compiling, xfuser_state

    transformer, counting = _make(in_eight_bits=True), Counting()
    compiling.compile_blocks(transformer, backend=counting)
    graphs = counting.graphs
    with xfuser_state.installed(xfuser_state.alone(0, torch.device("cpu"))):
        before = _forward(transformer, SIZES[0])
        layer = transformer.transformer_blocks[0].attn.to_q
        layer.store(layer.value() * 1.5)
        after = _forward(transformer, SIZES[0])
        counting.calls = 0
        lone = _forward(transformer, SINGLE_TOKENS)
        calls = counting.calls
        with torch.compiler.set_stance("force_eager"):
            transformer.compiled = False
            eager = _forward(transformer, SIZES[0])
            lone_eager = _forward(transformer, SINGLE_TOKENS)
    return {
        "graphs": (graphs, counting.graphs),
        "changed": not torch.equal(before, after),
        "off": float((after - eager).abs().max()),
        "lone": (calls, float((lone - lone_eager).abs().max())),
    }


def test_weights_in_eight_bits_compile_and_change_in_place() -> None:
    """Patched weights are seen by compiled code; a lone token runs uncompiled, and right."""
    (told,) = run_ranks(1, _changed_weights)
    assert told["graphs"] == (4, 4)
    assert told["changed"]
    assert told["off"] < 1e-6
    assert told["lone"] == (0, pytest.approx(0, abs=1e-6))


def _failing(_rank: Rank) -> str:
    from gpu_node.parallel import compiling

    def broken(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("g++ has no tongue")

    try:
        compiling.compile_blocks(_make(), backend=broken)
    except ExecutorFailed as error:
        return error.message
    return ""


def test_a_compiler_that_fails_is_told_of() -> None:
    """The words name the option and what was wrong."""
    (words,) = run_ranks(1, _failing)
    assert words.startswith("--compile: compiling failed: ")
    assert "g++ has no tongue" in words
    assert words.endswith("start the node without it")
