"""A coordinator with two ranks that serves the shipped model, for clients in other languages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ditmesh.client import Client
from ditmesh.errors import DitmeshError
from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
MODEL = "pixel-portraits"
RANKS = 2
START_S = 120.0
STOP_S = 60.0


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """The address of a coordinator whose group of two ranks is formed; stops all at the end."""
    models = folder / "models"
    models.mkdir()
    (models / MODEL).symlink_to(ROOT / "models" / MODEL)
    first = free_ports(1 + RANKS)
    address = f"127.0.0.1:{first}"
    nodes = ",".join(f"127.0.0.1:{first + 1 + rank}" for rank in range(RANKS))
    with (
        _process(
            folder / "nodes.log",
            *("gpu_node", "--ranks", str(RANKS), "--device", "cpu", "--port", str(first + 1)),
            *("--models", str(models)),
        ) as ranks,
        _process(
            folder / "coordinator.log",
            *("coordinator", "--listen", address, "--nodes", nodes, "--preload", MODEL),
            *("--local-models", str(models), "--regroup-wait", "60"),
        ) as coordinator,
    ):
        end = time.monotonic() + START_S
        while not formed(address):
            logs = [path.read_text()[-3000:] for path in sorted(folder.glob("*.log"))]
            assert time.monotonic() < end, f"there is no group\n{logs}"
            assert (ranks.poll(), coordinator.poll()) == (None, None), logs
            time.sleep(0.2)
        yield address


def formed(address: str) -> bool:
    """Whether every rank is in the group and the coordinator's pipeline can be used."""
    try:
        with Client(address, timeout_s=5) as client:
            now = client.cluster()
    except DitmeshError:
        return False
    return now.group.world_size == RANKS and now.group.state == "ready" and now.local.available


@contextmanager
def _process(log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            start_new_session=True,
        )
    try:
        yield process
        process.terminate()
        assert process.wait(STOP_S) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
        process.wait()
