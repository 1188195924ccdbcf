"""Any mesh, any image and text length: the result of one process, on every rank."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from ditmesh.mesh import MeshSpec
from ditmesh.models.family import Conditioning
from ditmesh.models.info import ModelInfo
from ditmesh.models.model import LocalModel
from tests.gpu_node.parallel import on_rank
from tests.gpu_node.parallel.cases import (
    CASES,
    CFG_2_ULYSSES_4,
    EXACT,
    GOLDEN,
    MESHES,
    ULYSSES_8,
    Case,
)
from tests.ranks import Ranks


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_every_mesh_agrees_with_one_process(
    eight: Ranks, local: LocalModel, mesh: MeshSpec
) -> None:
    """Each length and each branch agrees to 2e-6, and all ranks of the mesh hold equal bits."""
    for case in CASES:
        x_BCHW, branches = case.inputs()
        expected = local.evaluate(x_BCHW, on_rank.SIGMA, branches)
        answers = eight.run(on_rank.evaluate, mesh, case)
        outputs = answers[mesh.ranks[0]]
        for output, wanted in zip(outputs, expected, strict=True):
            assert (output - wanted).abs().max() < EXACT, case
        others = {answers[rank] for rank in mesh.ranks[1:]}
        assert others <= {on_rank.digest(outputs)}, case
        assert all(answers[rank] is None for rank in range(8) if rank not in mesh.ranks)


@pytest.mark.parametrize("mesh", [ULYSSES_8, MESHES[6], CFG_2_ULYSSES_4], ids=str)
def test_eight_ranks_agree_with_comfyui(eight: Ranks, mesh: MeshSpec) -> None:
    """The bare transformer call that ComfyUI recorded, on eight ranks, to 1e-5."""
    case = load_file(GOLDEN / "flux_forward.safetensors")
    cond = Conditioning(case["context"], case["pooled"], case["guidance"])
    outputs = eight.run(on_rank.predict, mesh, case["x"], case["sigma"], cond)
    for output in outputs:
        assert (output - case["velocity"]).abs().max() < 1e-5
        assert torch.equal(output, outputs[0])


def test_three_branches_on_a_split_mesh(eight: Ranks, local: LocalModel) -> None:
    """A branch without a partner is computed by both halves, and equals the others' rank."""
    case = Case(6, 10, (5, 7, 3))
    x_BCHW, branches = case.inputs()
    expected = local.evaluate(x_BCHW, on_rank.SIGMA, branches)
    answers = eight.run(on_rank.evaluate, CFG_2_ULYSSES_4, case)
    for output, wanted in zip(answers[0], expected, strict=True):
        assert (output - wanted).abs().max() < EXACT
    assert set(answers[1:]) == {on_rank.digest(answers[0])}


def test_bf16_is_no_further_off_than_one_process(info: ModelInfo, local: LocalModel) -> None:
    """In bf16 a mesh is as near to fp32 as one process in bf16 is, within a tenth."""
    single = LocalModel.load(info, device="cpu", dtype=torch.bfloat16)
    meshes = [MeshSpec((0, 1, 2, 3), 4), MeshSpec((0, 1, 2, 3), 2, 2), MeshSpec((0, 1, 2), 1, 3)]
    case = Case(18, 22, (77, 13))
    x_BCHW, branches = case.inputs()
    exact = torch.stack(local.evaluate(x_BCHW, on_rank.SIGMA, branches))
    off_single = (torch.stack(single.evaluate(x_BCHW, on_rank.SIGMA, branches)) - exact).std()
    with Ranks(4) as ranks:
        ranks.run(on_rank.load, torch.bfloat16)
        ranks.run(on_rank.join, 1, meshes)
        for mesh in meshes:
            output = torch.stack(ranks.run(on_rank.evaluate, mesh, case)[0])
            assert (output - exact).std() < 1.1 * off_single


def test_decisions_are_the_first_ranks(eight: Ranks) -> None:
    """Whatever the others think, every rank gets the first rank's integers, 64 bits of them."""
    for mesh in MESHES:
        answers = eight.run(on_rank.decide, mesh, 3)
        first = mesh.ranks[0]
        wanted = [[first, step, -(2**62)] for step in range(3)]
        assert all(answers[rank] == wanted for rank in mesh.ranks)


def test_a_rank_outside_the_mesh_is_told(eight: Ranks) -> None:
    """Using a mesh that one is not in, or that the epoch does not have, is an InvalidMesh."""
    mesh = MeshSpec((2, 5), ulysses=2)
    answers = eight.run(on_rank.use, mesh)
    assert [answers[rank] for rank in mesh.ranks] == ["done", "done"]
    assert answers[0].startswith("InvalidMesh: rank 0 has no place in mesh ulysses=2 on ranks 2,5")
    unknown = eight.run(on_rank.use, MeshSpec((3, 4), ulysses=2))
    assert all(answer.startswith("InvalidMesh: rank") for answer in unknown)


def test_heads_that_do_not_divide_are_refused_before_any_work(eight: Ranks) -> None:
    """A Ulysses degree that this model's heads do not allow never reaches a collective."""
    answers = eight.run(on_rank.use, MeshSpec((0, 1, 2), ulysses=3))
    assert all("does not divide the model's 8 heads" in answer for answer in answers)


def test_bad_input_does_not_break_the_group(eight: Ranks) -> None:
    """What every rank refuses alike leaves the group whole; the next evaluation works."""
    assert set(eight.run(on_rank.bad_input_then_good, ULYSSES_8, CASES[0])) == {"InvalidTensor"}
