"""On a CUDA device: one rank over NCCL, in bf16, compiled, in eight bits, with each kernel."""

from __future__ import annotations

import pytest
import torch

from tests.gpu_node.parallel.test_parallel_setup import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ON_NCCL = """
import torch
from torch._dynamo.utils import counters
from ditmesh.mesh import MeshSpec
from ditmesh.models.info import inspect
from ditmesh.models.loading import load
from ditmesh.models.model import LocalModel
from gpu_node.execution import Execution
from gpu_node.parallel import runtime
from gpu_node.parallel.model import MeshModel, load_transformer
from tests.gpu_node.parallel.cases import Case, SINGLE_FILE
from tests.ranks import host_store
device, mesh, info = torch.device("cuda:0"), MeshSpec((0,)), inspect(SINGLE_FILE)
runtime.prepare("cuda")
group = runtime.join(host_store()[0], epoch=1, rank=0, world_size=1, meshes=[mesh],
                     timeout_s=60.0, device=device)
exact = LocalModel.load(info, device="cpu", dtype=torch.float32)
def off(model, case):
    x, branches = case.inputs()
    wanted = exact.evaluate(x, 0.7, branches)
    outputs = model.evaluate(x, 0.7, branches)
    return max(float((o.cpu() - w).std()) for o, w in zip(outputs, wanted))
def check(execution, cases):
    "As near to fp32 as one process in bf16 is, with the same weights."
    made = load_transformer(info, device=device, dtype=torch.bfloat16, execution=execution)
    model = MeshModel(info, made, group, mesh)
    plain = LocalModel(info, load(info, device=device, dtype=torch.bfloat16,
                                  fp8_weights=execution.fp8_weights))
    graphs = counters["stats"]["unique_graphs"]
    for case in cases:
        assert off(model, case) < 1.5 * off(plain, case), case
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    assert execution.compile == (graphs > 0)
    group.leave()
"""


def test_bf16_on_nccl_is_as_near_as_one_process() -> None:
    """Eager, with torch's own choice of a kernel."""
    run(f"{ON_NCCL}\ncheck(Execution(), [Case(18, 22, (77, 13))])\n")


@pytest.mark.parametrize("in_eight_bits", [False, True])
def test_compiled_on_nccl_and_no_size_compiles_again(in_eight_bits: bool) -> None:
    """As near as eager, in bf16 and in eight bits; sizes, texts and batches add no graph."""
    run(
        f"{ON_NCCL}\n"
        "import warnings\n"
        "warnings.simplefilter('ignore')  # inductor's own advice\n"
        f"execution = Execution(fp8_weights={in_eight_bits}, compile=True)\n"
        "cases = Case(16, 16, (16,)), Case(18, 22, (77, 13)), Case(32, 48, (64,), batch=3)\n"
        "check(execution, cases)\n"
    )


def test_eight_bits_take_half_of_the_memory_at_every_moment() -> None:
    """Loading peaks at the weights and one tensor: the wide weights are never there together."""
    run(
        "import torch\n"
        "from ditmesh.models.info import inspect\n"
        "from ditmesh.models.loading import load\n"
        "from ditmesh.models.memory import weights_bytes\n"
        "from tests.gpu_node.parallel.cases import SINGLE_FILE\n"
        "info = inspect(SINGLE_FILE)\n"
        "module = load(info, device='cuda:0', dtype=torch.bfloat16, fp8_weights=True)\n"
        "wide = weights_bytes(info, 'bfloat16')\n"
        "assert torch.cuda.memory_allocated() < 0.65 * wide\n"
        "largest = max(p.numel() for p in module.parameters())\n"
        "assert torch.cuda.max_memory_allocated() < 0.65 * wide + 16 * largest\n"
    )
