"""`ditmesh sample` and `ditmesh status` against a coordinator in this process."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from ditmesh.cli import main
from ditmesh.errors import InvalidRequest, Overloaded
from ditmesh.v1 import cluster_pb2 as pb
from tests.cli.test_files import GOLDEN, f32, write
from tests.cli.test_png import decode
from tests.client.fake import Fake, serve

CASE = GOLDEN / "flux_euler_simple_n8_cfg1_d1_b1_16x16.safetensors"


@pytest.fixture
def fake() -> Fake:
    """A ready cluster with one model."""
    made = Fake()
    made.cluster.version = "1.0"
    made.cluster.nodes.add(address="gpu:1", state=pb.NODE_STATE_JOINED, rank=0, device="cpu", pid=7)
    made.cluster.nodes.add(address="gpu:2", state=pb.NODE_STATE_DOWN, problem="refused")
    made.cluster.group.CopyFrom(
        pb.Group(state=pb.GROUP_STATE_READY, epoch=4, world_size=1, meshes=["ulysses=1"])
    )
    made.cluster.models.add(
        name="flux",
        family="flux",
        on_group=True,
        parameters=12 * 10**9,
        num_heads=24,
        latent_channels=16,
        # The first channel is red, the second green, the third blue.
        preview_factors=[1, 0, 0, 0, 1, 0, 0, 0, 1, *[0] * 39],
        preview_bias=[0, 0, 0.5],
        vae_factor=8,
    )
    return made


@pytest.fixture
def address(fake: Fake):
    """Where it listens."""
    server, where = serve(fake)
    yield where
    server.stop(None).wait()


@pytest.fixture(autouse=True)
def keep_sigterm():
    """The command takes SIGTERM over; the test's process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def cond(tmp_path: Path) -> str:
    """A file of conditioning."""
    return str(write(tmp_path / "cond", {"positive": f32([1, 2, 3]), "negative": f32([1, 3, 3])}))


def test_golden(
    address: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A golden case is sampled, summed up, drawn as its latent looks, and compared."""
    out = tmp_path / "new" / "a.png"
    command = ["sample", "--address", address, "--golden", str(CASE), "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "step 4/4 on group" in said.err
    lines = said.out.splitlines()
    assert f"trace {'ab' * 16}" in lines[0]
    assert " ".join(lines[2].split()) == "group 1-4 8 ranks ulysses=8 3 0.50 s 0.125 s"
    assert "fallback: from group to local after step 2" in lines[3]
    assert "GROUP_LOST, a rank died" in lines[3]
    assert "a linear preview of the latent: flux has no decoder here" in lines[5]
    assert lines[6].startswith("largest difference from ComfyUI's own latent: ")
    picture = decode(out.read_bytes())
    assert picture.shape == (128, 128, 3)
    assert (picture[:8, :8] == picture[0, 0]).all()  # a latent cell
    assert (picture == 255).all()  # the fake's steps add 4 to noise-free zeros
    assert fake.streams[0].requests[0].job.sampler == "euler"


def test_options_reach_the_job(address: str, fake: Fake, cond: str) -> None:
    """Pixels become latent cells; all else goes as it is."""
    options = ["--size", "64x32", "--batch", "2", "--seed", "5", "--steps", "3", "--cfg", "2"]
    options += ["--guidance", "4", "--shift", "1.5", "--sampler", "heun", "--scheduler", "beta"]
    options += ["--denoise", "0.5", "--fallback", "forbid"]
    assert main(["sample", "--address", address, "--cond", cond, *options]) == 0
    spec = fake.streams[0].requests[0].job
    latent = spec.empty_latent
    assert (latent.batch, latent.height, latent.width) == (2, 4, 8)
    assert (spec.seed, spec.cfg, spec.shift, spec.sampler) == (5, 2.0, 1.5, "heun")
    assert (spec.schedule.named.steps, spec.schedule.named.denoise) == (3, 0.5)
    assert list(spec.positive.guidance) == [4.0]
    assert spec.negative.HasField("text")


def test_prompt(
    address: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt is encoded and the picture decoded by the cluster; one file for each picture."""
    fake.cluster.models[0].has_pipeline = True
    out = tmp_path / "a.png"
    command = ["sample", "--address", address, "--prompt", "a cat", "--size", "16x16"]
    command += ["--cfg", "3", "--negative", "dogs!", "--batch", "2", "--out", str(out)]
    assert main(command) == 0
    spec = fake.streams[0].requests[0].job
    tokens = [spec.tensors[branch.text].shape[1] for branch in (spec.positive, spec.negative)]
    assert tokens == [5, 5]
    assert (tmp_path / "a-1.png").read_bytes() == b"png 0 of flux"
    assert (tmp_path / "a-2.png").read_bytes() == b"png 1 of flux"
    assert "2 tokens at its end do not count" in capsys.readouterr().err


def test_prompt_without_encoders(
    address: str, cond: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model without text encoders says what to do instead."""
    assert main(["sample", "--address", address, "--prompt", "a cat"]) == 2
    assert "use --cond" in capsys.readouterr().err
    assert main(["sample", "--address", address, "--cond", cond, "--negative", "x"]) == 2


def test_pictures_of_unknown_models(
    address: str, fake: Fake, cond: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with neither decoder nor colours gets no picture, and says so."""
    del fake.cluster.models[0].preview_factors[:]
    out = tmp_path / "a.png"
    assert main(["sample", "--address", address, "--cond", cond, "--out", str(out)]) == 0
    assert "no picture: flux has no decoder here" in capsys.readouterr().out
    assert not out.exists()


def test_size_that_does_not_fit(
    address: str, cond: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pixels that are no whole latent cells are refused before anything is sampled."""
    assert main(["sample", "--address", address, "--cond", cond, "--size", "100x64"]) == 2
    assert "--size 100x64: each must be a multiple of 8" in capsys.readouterr().err


def test_choice_of_model(
    address: str, fake: Fake, cond: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among several models one must be chosen, and it must be there."""
    fake.cluster.models.add().CopyFrom(fake.cluster.models[0])
    fake.cluster.models[1].name = "other"
    assert main(["sample", "--address", address, "--cond", cond]) == 2
    assert "this cluster serves: flux, other" in capsys.readouterr().err
    assert main(["sample", "--address", address, "--cond", cond, "--model", "sd3"]) == 4
    assert main(["sample", "--address", address, "--cond", cond, "--model", "other"]) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidRequest("steps is 0", field="job.schedule"), 3), (Overloaded("full"), 5)],
)
def test_refused(
    address: str,
    fake: Fake,
    cond: str,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    """A refusal is one line, with the trace in which to look for it, and the code of its kind."""

    def before_job(stream: int) -> None:
        raise error

    fake.before_job = before_job
    assert main(["sample", "--address", address, "--cond", cond]) == code
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"ditmesh: error: {error}"
    assert "trace " in said[-2]


def test_timeout(address: str, fake: Fake, cond: str) -> None:
    """--timeout is the job's deadline."""
    fake.before_step = lambda stream, step: threading.Event().wait(1.0) and None
    assert main(["sample", "--address", address, "--cond", cond, "--timeout", "0.4"]) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    address: str, fake: Fake, cond: str, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """Ctrl-C and SIGTERM end the job on the server, then the command, with code 130."""

    def before_step(stream: int, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), number)
            assert next(iter(fake.jobs.values())).cancelled.wait(10.0)

    fake.before_step = before_step
    assert main(["sample", "--address", address, "--cond", cond]) == 130
    assert "has ended on the cluster" in capsys.readouterr().err
    assert fake.streams[0].kinds[-1] == "cancel"


def test_one_trace(address: str, fake: Fake, tmp_path: Path) -> None:
    """Prompt, job and picture are one trace of the client."""
    fake.cluster.models[0].has_pipeline = True
    spans = tmp_path / "spans.jsonl"
    command = ["sample", "--address", address, "--prompt", "a", "--size", "16x16"]
    command += ["--out", str(tmp_path / "a.png"), "--trace-file", str(spans)]
    assert main(command) == 0
    recorded = [json.loads(line) for line in spans.read_text().splitlines()]
    names = {span["name"].rpartition("/")[2] for span in recorded}
    assert names == {"ditmesh sample", "EncodePrompt", "Sample", "DecodeLatent"}
    assert len({span["trace_id"] for span in recorded}) == 1


def test_status(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nodes, group, queue and models stand in aligned columns."""
    assert main(["status", "--address", address]) == 0
    text = capsys.readouterr().out
    assert f"coordinator {address}, version 1.0" in text
    assert "group   ready, epoch 4, 1 rank, mesh ulysses=1" in text
    assert "queue   0 jobs waiting, 0 running" in text
    assert "local   none: not configured" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["gpu:1", "joined", "0", "cpu", "7"] in lines
    assert ["gpu:2", "down", "-", "0", "refused"] in lines
    assert ["flux", "flux", "12.00", "B", "24", "yes", "no", "no"] in lines


def test_status_as_json(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--json gives all of it to programs."""
    assert main(["status", "--address", address, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is True
    assert told["nodes"][1]["state"] == "down"
    assert told["group"]["epoch"] == 4


def test_wait_ready(address: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """--wait-ready returns when the group is there, and says what was missing when it is not."""
    fake.cluster.group.state = pb.GROUP_STATE_FORMING
    fake.cluster.group.problem = "waiting for gpu:2"
    assert main(["status", "--address", address, "--wait-ready", "0.1"]) == 6
    said = capsys.readouterr().err
    assert "the group is forming, 1 of 2 nodes are up: waiting for gpu:2" in said

    def form() -> None:
        fake.cluster.group.state = pb.GROUP_STATE_READY

    threading.Timer(0.5, form).start()
    assert main(["status", "--address", address, "--wait-ready", "20"]) == 0


def test_unreachable(cond: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a coordinator every command ends soon with what to check."""
    assert main(["status", "--address", "127.0.0.1:1"]) == 5
    assert main(["sample", "--address", "127.0.0.1:1", "--cond", cond]) == 5
    assert capsys.readouterr().err.count("Cannot reach the coordinator") == 2
