"""The `ditmesh` command on a real cluster: up, status, sample, demo, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.e2e.cluster import (
    MODEL,
    START_S,
    STOP_S,
    WAIT_S,
    environment,
    model_folder,
    processes_of,
    stop_with_parent,
)
from tests.e2e.clusters import Clusters
from tests.ports import free_ports
from tests.sampling.golden_cases import CHECKPOINT, GOLDEN

pytestmark = pytest.mark.timeout(300)

GOLDEN_FILE = GOLDEN / "flux_dpmpp_2m_karras_n20_cfg1_d1_b1_16x16.safetensors"
GOLDEN_JOB = ("--golden", str(GOLDEN_FILE), "--model", MODEL)
DIFFERENCE = re.compile(r"largest difference from ComfyUI's own latent: (\S+)")


class Shell:
    """Runs `ditmesh` commands whose processes can be found again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = folder.as_posix()

    def start(
        self, *command: str, output: int = subprocess.PIPE, errors: int = subprocess.STDOUT
    ) -> subprocess.Popen[str]:
        """Start a command, all its output in one pipe or file unless `errors` go elsewhere."""
        return subprocess.Popen(
            [sys.executable, "-m", "ditmesh.cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(self.mark),
            preexec_fn=stop_with_parent,
            text=True,
        )

    def run(self, *command: str) -> str:
        """Run a command that must succeed; its output, without what is said on stderr."""
        process = self.start(*command, errors=subprocess.PIPE)
        output, errors = process.communicate(timeout=START_S)
        assert process.returncode == 0, output + errors
        return output


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """The output of a process up to the first line with those words."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"ended before {words!r}:\n{''.join(lines)}")


def read_terminal(terminal: int, until: bytes | None = None) -> bytes:
    """What a process shows, up to some words or to its end."""
    shown = b""
    while until is None or until not in shown:
        try:
            shown += os.read(terminal, 4096)
        except OSError:  # nobody has the other end open any more
            assert until is None, shown
            break
    return shown


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, clusters: Clusters) -> Iterator[Shell]:
    """Commands, after which nothing may run on."""
    clusters.stop()
    shell = Shell(tmp_path_factory.mktemp("commands"))
    yield shell
    left = processes_of(shell.mark)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


@pytest.fixture(scope="module")
def up(shell: Shell) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`ditmesh up` with eight ranks, ready, and its address; Ctrl-C ends it."""
    port = free_ports(9)
    models = model_folder(shell.folder / "models", MODEL)
    process = shell.start(
        *("up", "--nodes", "8", "--models", str(models), "--preload", MODEL),
        *("--port", str(port), "--node-port", str(port + 1)),
    )
    read_until(process, "ready at")
    yield process, f"127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=STOP_S)
    assert process.returncode == 0, output
    assert "killed" not in output


def test_status(shell: Shell, up: tuple[subprocess.Popen[str], str]) -> None:
    """`status` shows every node and the mesh, for people and as JSON."""
    told = json.loads(shell.run("status", "--json", "--address", up[1]))
    assert told["ready"]
    assert sorted(node["rank"] for node in told["nodes"]) == list(range(8))
    text = shell.run("status", "--address", up[1])
    assert "ulysses=8" in text
    assert MODEL in text
    assert all(str(node["pid"]) in text for node in told["nodes"])


def test_sample(shell: Shell, up: tuple[subprocess.Popen[str], str]) -> None:
    """`sample` runs a golden case, says who did what, and writes a picture."""
    picture = shell.folder / "golden.png"
    output = shell.run(
        *("sample", *GOLDEN_JOB, "--out", str(picture), "--address", up[1]),
    )
    found = DIFFERENCE.search(output)
    assert found, output
    assert float(found[1]) <= 5e-4
    assert re.search(r"group +1-20 +8 ranks +ulysses=8", output), output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_interrupted_sample(shell: Shell, up: tuple[subprocess.Popen[str], str]) -> None:
    """Ctrl-C ends the job on the cluster; the exit code says so; the next job runs."""
    conditioning = shell.folder / "conditioning.safetensors"
    ones = {"positive": np.ones((1, 8, 64)), "pooled_positive": np.ones((1, 32))}
    save_file({name: value.astype(np.float32) for name, value in ones.items()}, conditioning)
    terminal, its_end = os.openpty()
    process = shell.start(
        *("sample", "--model", MODEL, "--cond", str(conditioning)),
        *("--steps", "10000", "--size", "64x64"),
        *("--address", up[1]),
        output=its_end,
    )
    os.close(its_end)
    shown = read_terminal(terminal, until=b"/10000")
    process.send_signal(signal.SIGINT)
    output = (shown + read_terminal(terminal)).decode()
    os.close(terminal)
    process.wait(WAIT_S)
    assert process.returncode == 130, output
    assert "has ended on the cluster" in output
    assert json.loads(shell.run("status", "--json", "--address", up[1]))["queue"]["running"] == 0
    shell.run("sample", *GOLDEN_JOB, "--address", up[1])


def test_node_that_dies(shell: Shell, up: tuple[subprocess.Popen[str], str]) -> None:
    """`up` starts it again and says so; the group is whole again."""
    process, address = up
    before = json.loads(shell.run("status", "--json", "--address", address))
    os.kill(next(node["pid"] for node in before["nodes"] if node["rank"] == 3), signal.SIGKILL)
    read_until(process, "ended with code 137; starting it again")
    end = time.monotonic() + WAIT_S
    while True:
        now = json.loads(
            shell.run("status", "--json", "--wait-ready", str(WAIT_S), "--address", address)
        )
        if now["group"]["world_size"] == 8 and now["group"]["epoch"] > before["group"]["epoch"]:
            break
        assert time.monotonic() < end, now
    shell.run("sample", *GOLDEN_JOB, "--fallback", "forbid", "--address", address)


def test_demo(shell: Shell, clusters: Clusters) -> None:
    """`demo` starts eight ranks, samples, writes picture and trace, and leaves nothing running."""
    out = shell.folder / "out"
    output = shell.run(
        *("demo", "--golden", str(GOLDEN_FILE), "--model", str(CHECKPOINT), "--out", str(out))
    )
    found = DIFFERENCE.search(output)
    assert found, output
    assert float(found[1]) <= 5e-4
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    trace = (out / "trace.txt").read_text()
    for who in ("client", "coordinator", "gpu_node"):
        assert who in trace
