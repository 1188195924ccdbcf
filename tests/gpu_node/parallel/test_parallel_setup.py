"""Preparing a process: what it leaves alone, and which builds of torch it works with.

Each test runs in a process of its own, because preparing happens once in a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]

ONE_RANK = """
import torch
torch.set_num_threads(1)
from torch.distributed import TCPStore
from ditmesh.mesh import MeshSpec
from ditmesh.models.info import inspect
from gpu_node.parallel import runtime
from gpu_node.parallel.model import MeshModel, load_transformer
from tests.gpu_node.parallel.cases import Case, SINGLE_FILE
from tests.ranks import host_store
DEVICE = "cpu"
def evaluate():
    store, _ = host_store()
    mesh = MeshSpec((0,))
    group = runtime.join(store, epoch=1, rank=0, world_size=1, meshes=[mesh], timeout_s=60.0,
                         device=DEVICE)
    info = inspect(SINGLE_FILE)
    transformer = load_transformer(info, device=DEVICE, dtype=torch.float32)
    x, branches = Case(18, 22, (77, 13)).inputs()
    outputs = MeshModel(info, transformer, group, mesh).evaluate(x, 0.7, branches)
    assert all(output.isfinite().all() for output in outputs)
    assert group.decide(mesh, [7]) == [7]
    group.leave()
    return outputs
"""


def run(program: str) -> None:
    """Run a program with every warning an error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        # numpy's and scipy's linear algebra each start a pool, which survives forking.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_a_prepared_parent_can_fork() -> None:
    """Preparing for the CPU starts no thread and no CUDA, prints nothing, and comes first.

    Joining unprepared, an unknown device, and changing one's mind are programming errors.
    """
    run(
        f"{ONE_RANK}\n"
        "import os\n"
        "from ditmesh.errors import InternalError, InvalidMesh\n"
        "def refused(error, words, function, *args, **kwargs):\n"
        "    try: function(*args, **kwargs)\n"
        "    except error as caught: assert words in str(caught), caught\n"
        "    else: raise AssertionError(words)\n"
        "refused(InternalError, 'has not been called', runtime.join, None, epoch=1, rank=0,\n"
        "        world_size=1, meshes=[], timeout_s=1.0)\n"
        "refused(InternalError, \"no ranks on 'tpu'\", runtime.prepare, 'tpu')\n"
        "runtime.prepare('cpu')\n"
        "runtime.prepare('cpu')\n"
        "threads = os.listdir('/proc/self/task')\n"
        "assert len(threads) == 1, threads\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert runtime.transformer_class('flux').__name__ == 'ExactFlux'\n"
        "refused(InternalError, 'cannot become cuda', runtime.prepare, 'cuda')\n"
        "refused(InvalidMesh, 'one rank only', runtime.transformer_class, 'sdxl')\n"
    )


def test_a_cuda_build_without_a_device() -> None:
    """With a torch built for CUDA, xfuser's own checks would call CUDA; here it runs on the CPU."""
    run(
        f"{ONE_RANK}\n"
        "torch.version.cuda = '13.0'\n"  # what such a build says, whatever devices there are
        "runtime.prepare('cpu')\n"
        "evaluate()\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_one_rank_on_nccl() -> None:
    """One rank on a GPU joins over NCCL, evaluates, decides and leaves."""
    run(
        f"{ONE_RANK}\n"
        "DEVICE = 'cuda:0'\n"
        "runtime.prepare('cuda')\n"
        "first, second = evaluate()\n"
        "from ditmesh.models.model import LocalModel\n"
        "local = LocalModel.load(inspect(SINGLE_FILE), device='cuda:0', dtype=torch.float32)\n"
        "x, branches = Case(18, 22, (77, 13)).inputs()\n"
        "expected = local.evaluate(x, 0.7, branches)\n"
        "assert (first - expected[0]).abs().max() < 1e-4\n"
    )
