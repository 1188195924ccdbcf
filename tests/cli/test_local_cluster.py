"""`ditmesh up` and `ditmesh demo` as processes, with stand-ins for coordinator and nodes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditmesh.cli import demo, main, processes
from ditmesh.cli.exit_codes import UsageError
from ditmesh.cli.processes import LocalCluster, free_ports
from ditmesh.errors import InvalidMesh

ROOT = Path(__file__).parents[2]
CASE = ROOT / "tests/golden/flux_euler_simple_n8_cfg1_d1_b1_16x16.safetensors"
CHECKPOINT = ROOT / "tests/golden/tiny_flux_bfl.safetensors"
MARK = "DITMESH_CLI_TEST"
WAIT_S = 30.0


class Command:
    """A command that runs, and every process that it started."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.stub_cluster", *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, MARK: self.mark},
            text=True,
        )

    def read_until(self, words: str) -> str:
        """Output up to a line with these words."""
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:
            text += line
            if words in line:
                return text
        raise AssertionError(f"no {words!r} in:\n{text}")

    def end(self, number: int | None = None) -> tuple[int, str]:
        """The exit code and the rest of the output, after a signal if one is given."""
        if number is not None:
            self.process.send_signal(number)
        text, _ = self.process.communicate(timeout=60)
        return self.process.returncode, text

    def children(self) -> dict[str, int]:
        """Process ids by name of all that it started and that still run."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                mine = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                if mine and int(entry.name) != self.process.pid:
                    found[(entry / "comm").read_text().strip()] = int(entry.name)
            except (OSError, ValueError):
                continue  # no process, or one that has just ended
        return found


@pytest.fixture
def started() -> Iterator[list[Command]]:
    """Commands of a test: whatever happens, nothing of them is left."""
    commands: list[Command] = []
    yield commands
    for command in commands:
        command.process.kill()
        command.process.wait()
        for pid in command.children().values():
            os.kill(pid, signal.SIGKILL)


def test_demo(started: list[Command], tmp_path: Path) -> None:
    """The whole show: ready, sampled, summed up, written, and nothing is left running."""
    out = tmp_path / "out"
    command = Command("demo", "--golden", str(CASE), "--nodes", "2", "--out", str(out))
    started.append(command)
    code, text = command.end()
    assert code == 0, text
    assert "ready at 127.0.0.1:" in text
    assert "group     1-4    8 ranks  ulysses=8" in text
    assert "largest difference from ComfyUI's own latent" in text
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert "ditmesh sample" in (out / "trace.txt").read_text()
    assert json.loads((out / "spans.jsonl").read_text().splitlines()[0])["service"] == "client"
    assert command.children() == {}


def test_interrupted_demo(started: list[Command], tmp_path: Path) -> None:
    """Ctrl-C cancels the job and stops everything."""
    command = Command(
        *("demo", "--golden", str(CASE), "--nodes", "2", "--out", str(tmp_path)), STUB_STEP_S="60"
    )
    started.append(command)
    command.read_until("step 1/4")
    code, text = command.end(signal.SIGINT)
    assert code == 130, text
    assert command.children() == {}


def test_demo_that_is_killed(started: list[Command], tmp_path: Path) -> None:
    """Even SIGKILL leaves no process behind."""
    command = Command(
        *("demo", "--golden", str(CASE), "--nodes", "2", "--out", str(tmp_path)), STUB_STEP_S="60"
    )
    started.append(command)
    command.read_until("step 1/4")
    assert {"coordinator", "node0", "node1", "client"} <= command.children().keys()
    command.end(signal.SIGKILL)
    end = time.monotonic() + WAIT_S
    while command.children() and time.monotonic() < end:
        time.sleep(0.05)
    assert command.children() == {}


@pytest.mark.parametrize(
    ("ends_with", "code", "words"),
    [(3, 1, "does not stay alive; giving up"), (2, 2, "cannot run as it is configured; stopping")],
)
def test_demo_whose_coordinator_dies(
    ends_with: int, code: int, words: str, started: list[Command], tmp_path: Path
) -> None:
    """A process that cannot stay alive ends the show in seconds, not after the wait; one that can
    never run so ends it at once.
    """
    options = ("--golden", str(CASE), "--out", str(tmp_path))
    command = Command("demo", *options, STUB_DIES=str(ends_with))
    started.append(command)
    told, text = command.end()
    assert told == code
    assert f"coordinator {words}" in text
    assert command.children() == {}


def test_up(started: list[Command], tmp_path: Path) -> None:
    """A cluster says when it is ready, starts a child again, and ends well on SIGTERM."""
    port = free_ports(4)
    options = ("--port", str(port), "--node-port", str(port + 1), "--models", str(tmp_path))
    command = Command("up", "--nodes", "2", *options)
    started.append(command)
    assert f"ready at 127.0.0.1:{port}" in command.read_until("ready at")
    first = command.children()["node1"]
    os.kill(first, signal.SIGKILL)
    command.read_until("node1 ended with code 137; starting it again")
    end = time.monotonic() + WAIT_S
    while command.children().get("node1") in (None, first) and time.monotonic() < end:
        time.sleep(0.05)
    assert command.children()["node1"] != first
    code, text = command.end(signal.SIGTERM)
    assert code == 0, text
    assert command.children() == {}


def test_taken_port(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port that somebody else has is said before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["up", "--port", str(port), "--models", str(tmp_path)]
        assert main(command) == 9
    assert f"port {port} cannot be used: Address already in use" in capsys.readouterr().err


def test_impossible_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no cluster can be is refused with a reason, before anything starts."""
    assert main(["up", "--models", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["up", "--models", str(tmp_path), "--nodes", "0", "--no-local"]) == 2
    assert "nothing could run a job" in capsys.readouterr().err
    assert main(["up", "--models", str(tmp_path), "--attention", "cudnn"]) == 2
    assert "--attention cudnn: it is for GPUs" in capsys.readouterr().err
    with pytest.raises(InvalidMesh, match="16"):
        LocalCluster(models=tmp_path, mesh="ulysses=16").check()


def test_missing_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the client is installed, `up` says what to install."""
    monkeypatch.setitem(sys.modules, "coordinator.cluster.meshes", None)
    with pytest.raises(UsageError, match=r"pip install 'ditmesh\[coordinator\]'"):
        LocalCluster(models=tmp_path).check()


def test_options_fit_the_services(tmp_path: Path) -> None:
    """Every option that is passed on is one that coordinator and nodes have."""
    pytest.importorskip("torch")
    cluster = LocalCluster(
        models=tmp_path,
        nodes=2,
        dtype="bf16",
        fp8_weights=True,
        compile=True,
        attention="flash",
        mesh="ulysses=2",
        cfg_split=True,
        preload=("flux",),
        trace_file=tmp_path / "spans",
        otlp_endpoint="collector:4317",
    )
    children, preload = cluster.children(tmp_path)
    assert [child.name for child in children] == ["coordinator", "local", "node0", "node1"]
    assert preload
    config = children[0].args
    assert config.listen == cluster.address
    assert config.nodes == cluster.node_addresses
    assert config.preload == ("flux",)
    assert config.telemetry.exporters == ("file", "otlp")
    execution = children[3].args.execution
    assert (execution.dtype, execution.attention) == ("bf16", "flash")
    assert execution.compile
    assert execution.fp8_weights
    assert children[3].args.executor.listen == cluster.node_addresses[1]
    on_cuda, _ = LocalCluster(models=tmp_path, nodes=1, device="cuda").children(tmp_path)
    assert on_cuda[2].args.device == "cuda:0"


def plan(models: Path, *options: str) -> demo.Show:
    """What `ditmesh demo` would show."""
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    models.mkdir()
    return demo._plan(parser.parse_args(options), models, "h:1", Path("spans"))


def test_plan_with_nothing_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a trained model the show is the golden case; elsewhere there is nothing to show."""
    monkeypatch.setattr(demo, "_PROMPT_MODEL", tmp_path / "none")
    show = plan(tmp_path / "a", "--golden", str(CASE), "--model", str(CHECKPOINT))
    assert show.prompt is None
    assert show.golden is not None
    assert show.golden[0] == show.first_choice == "tiny_flux_bfl"
    assert (tmp_path / "a" / "tiny_flux_bfl.safetensors").samefile(CHECKPOINT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="nothing to show"):
        plan(tmp_path / "b")


def test_plan_with_a_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trained model the show is a prompt; the golden case stands by."""
    model = tmp_path / "portraits"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    monkeypatch.setattr(demo, "_PROMPT_MODEL", model)
    monkeypatch.chdir(ROOT)
    show = plan(tmp_path / "a", "--seed", "3")
    assert show.prompt is not None
    assert show.golden is not None
    assert show.first_choice == "portraits"
    options = dict(zip(show.prompt[1::2], show.prompt[2::2], strict=True))
    assert options["--size"] == "128x128"
    assert options["--seed"] == "3"
    assert plan(tmp_path / "b", "--prompt", "a cat").golden is None
    assert plan(tmp_path / "c", "--golden", str(CASE)).prompt is None


def test_free_ports_are_free() -> None:
    """Ports that are found can be listened on; a taken one is passed over."""
    first = free_ports(3)
    with socket.create_server((processes.HOST, first + 1)):
        found = free_ports(3)
        assert first + 1 not in range(found, found + 3)
