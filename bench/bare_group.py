"""Starts `bare` under torchrun and gives it jobs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.cluster import START_S

_JOB_S = 120.0
_STOP_S = 20.0


class BareGroup:
    """The ranks of one torchrun; ready when the block is entered."""

    def __init__(self, folder: Path, models: Path, *, ranks: int) -> None:
        self._models = models
        self._ranks = ranks
        self._log = folder / "bare.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: Any = None
        self._temporary = tempfile.TemporaryDirectory(prefix="ditmesh-bare-")

    def __enter__(self) -> BareGroup:
        control = str(Path(self._temporary.name) / "control")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(self._ranks), "-m", "bench.bare"]
        command += [control, str(self._models)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        try:
            with socket.socket(socket.AF_UNIX) as listener, self._log.open("ab") as log:
                listener.bind(control)
                listener.listen()
                listener.settimeout(START_S)
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                )
                connection, _ = listener.accept()
            connection.settimeout(_JOB_S)
            self._lines = connection.makefile("rw")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def run(self, job: dict[str, Any]) -> float:
        """Sample; the milliseconds from the first step to the latent."""
        self._lines.write(json.dumps(job) + "\n")
        self._lines.flush()
        answer = self._lines.readline()
        if not answer:
            raise RuntimeError(f"torchrun's ranks are gone; see {self._log}")
        return 1e3 * float(json.loads(answer)["seconds"])

    def _stop(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        process, self._process = self._process, None
        if process is not None:
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                process.wait(_STOP_S)
        self._temporary.cleanup()
