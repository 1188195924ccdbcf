"""What an example client must do, whatever its language."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import grpc
import pytest

from ditmesh.client import Client
from tests.clients.slow_server import PICTURE, SlowServer, serving

PROMPT = "a smiling woman with red hair"
SEED = 2**64 - 1
"""More than a double holds."""
SIZE = 64
STEPS = 4
MIB = 1 << 20
_LIMIT_S = 120.0


class ExampleClient:
    """Tests of one example.

    The module of a subclass has a fixture `command`, which builds it and says how to run it.
    """

    sizes: ClassVar[Sequence[int]]
    """Bytes of the two tensors that the slow server wants."""
    most_unread: ClassVar[int] = 0
    """Bytes that the client may have sent while nobody reads; 0: it does not say."""

    def test_a_prompt_becomes_the_picture_that_python_gets(
        self, command: Sequence[str], coordinator: str, expected_picture: bytes, tmp_path: Path
    ) -> None:
        """The same bytes of PNG, steps told up to the last, no tensor of the prompt sent again."""
        picture = tmp_path / "picture.png"
        with client(
            command, coordinator, prompt=PROMPT, seed=SEED, size=SIZE, steps=STEPS, output=picture
        ) as process:
            said, complaints = process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 0, complaints
        assert picture.read_bytes() == expected_picture
        # Of steps that come fast, not all are told of.
        told = [int(step) for step in re.findall(r"step (\d+)/4", said)]
        assert told == sorted({*told, 4})
        assert "uploaded" not in said.partition("step ")[0]
        assert "fallback" not in said

    def test_an_interrupt_cancels_the_job(
        self, command: Sequence[str], coordinator: str, tmp_path: Path
    ) -> None:
        """The client hears that it was cancelled; the cluster stops working on it at once."""
        with client(
            command, coordinator, steps=900, deadline=600, output=tmp_path / "none.png"
        ) as process:
            lines = iter(process.stdout or ())
            under_way = any(re.match(r"step (\d{2,}|[2-9])/", line) for line in lines)
            assert under_way, process.communicate(timeout=_LIMIT_S)
            os.killpg(process.pid, signal.SIGINT)
            _, complaints = process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 1
        assert "JOB_CANCELLED" in complaints
        _wait_until_idle(coordinator)

    def test_a_deadline_ends_the_job(
        self, command: Sequence[str], coordinator: str, tmp_path: Path
    ) -> None:
        """On the client's side and on the cluster's."""
        with client(
            command, coordinator, steps=900, deadline=4, output=tmp_path / "none.png"
        ) as process:
            _, complaints = process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 1
        assert re.search(r"DEADLINE_EXCEEDED|code 4\b", complaints), complaints
        _wait_until_idle(coordinator)

    @pytest.mark.parametrize(
        ("wrong", "reason", "field"),
        [
            ({"model": "nobody"}, "UNKNOWN_MODEL", "model"),
            ({"size": 72}, "INVALID_TENSOR|INVALID_REQUEST", "empty_latent"),
        ],
    )
    def test_an_error_says_which_it_is_and_which_field(
        self,
        command: Sequence[str],
        coordinator: str,
        wrong: dict[str, object],
        reason: str,
        field: str,
        tmp_path: Path,
    ) -> None:
        """From the details of the status, in the first call and in the job's."""
        with client(command, coordinator, output=tmp_path / "none.png", **wrong) as process:
            _, complaints = process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 1
        assert re.search(rf'reason"?: ?"({reason})"', complaints), complaints
        assert re.search(rf'field"?: ?"[a-z_.]*{field}', complaints), complaints
        assert "never" in complaints

    def test_what_the_server_has_lost_goes_up_no_faster_than_it_reads(
        self, command: Sequence[str], tmp_path: Path
    ) -> None:
        """Asked for, the prompt's tensors come whole, in order, not far ahead of the reader."""
        picture = tmp_path / "picture.png"
        servicer = SlowServer(*self.sizes)
        with serving(servicer) as address, client(command, address, output=picture) as process:
            assert servicer.stalling.wait(_LIMIT_S)
            time.sleep(1.0 if self.most_unread else 0.0)
            os.kill(process.pid, signal.SIGSTOP)
            so_far = _written(process) if self.most_unread else ""
            os.kill(process.pid, signal.SIGCONT)
            servicer.read_on.set()
            _, complaints = process.communicate(timeout=_LIMIT_S)
        assert process.returncode == 0, complaints
        assert max(map(int, re.findall(r"uploaded (\d+)", so_far)), default=0) <= self.most_unread
        assert servicer.uploaded == tuple(bytes(tensor.data) for tensor in servicer.tensors)
        assert picture.read_bytes() == PICTURE

    def test_calls_are_encrypted_and_carry_the_token(
        self, command: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With an authority and a token given; every call says who is calling."""
        key, certificate = _certificate(tmp_path)
        credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
        monkeypatch.setenv("DITMESH_TOKEN", "s3cret")
        servicer, picture = SlowServer(5, 3), tmp_path / "picture.png"
        servicer.read_on.set()
        with (
            serving(servicer, credentials) as address,
            client(command, address, ca=certificate, output=picture) as process,
        ):
            _, complaints = process.communicate(timeout=_LIMIT_S)
        assert picture.read_bytes() == PICTURE, complaints
        assert servicer.authorizations == {"Bearer s3cret"}


@contextmanager
def client(
    command: Sequence[str], address: str, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """A client that runs; killed at the end should it still do."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [*command, "--address", address, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _written(process: subprocess.Popen[str]) -> str:
    """What a process has written so far, if anything."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], 0.0)
    return os.read(process.stdout.fileno(), MIB).decode() if readable else ""


def tool(name: str, where: Path = Path(sys.executable).parent) -> str:
    """The path of a program, looked for in `where` first; fails with what installs it."""
    found = shutil.which(name, path=str(where)) or shutil.which(name)
    assert found, f"{name} is missing: run clients/install-toolchains.sh"
    return found


def build(*command: str, folder: Path) -> None:
    """Run a step of a build; fails with what it said."""
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, (
        f"{' '.join(command)} failed; clients/install-toolchains.sh installs what it needs\n"
        f"{done.stdout[-4000:]}"
    )


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A key, and a certificate for localhost that it signed itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    build(
        *(tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-keyout", str(key), "-out", str(certificate), "-days", "1"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        folder=folder,
    )
    return key, certificate


def _wait_until_idle(coordinator: str) -> None:
    with Client(coordinator) as asking:
        _wait(lambda: asking.cluster().queue.running == 0, "the job to end on the cluster")


def _wait(condition: Callable[[], bool], what: str) -> None:
    # Less than the ten seconds for which a job without a client runs on.
    end = time.monotonic() + 8.0
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)
