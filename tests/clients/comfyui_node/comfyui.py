"""A real ComfyUI process, spoken to over its HTTP API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from tests.ports import free_ports

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PACK = ROOT / "clients" / "comfyui_node"
_START_S = 180.0
_RUN_S = 120.0

Prompt = dict[str, Any]


class ComfyUI:
    """An unmodified ComfyUI with a base folder of its own, in which the pack is installed."""

    def __init__(self, folder: Path, cluster: str, **environment: str) -> None:
        """`cluster`: address of the coordinator that nodes use without a dispatcher.
        `environment`: further variables of the process.
        """
        self.folder = folder
        self.cluster = cluster
        self.log = folder / "comfyui.log"
        self.port = free_ports(1)
        self._environment = {"DITMESH_ADDRESS": cluster, **environment}
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("custom_nodes", "models/loras", "input", "output", "temp", "user"):
            (folder / name).mkdir(parents=True)
        (folder / "custom_nodes" / "ditmesh").symlink_to(PACK)
        (folder / "custom_nodes" / "testing").symlink_to(HERE / "comfyui_side")

    def __enter__(self) -> ComfyUI:
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [
            *(python, str(HERE / "start_comfyui.py"), os.environ["COMFYUI"], "--cpu"),
            *("--listen", "127.0.0.1", "--port", str(self.port)),
            *("--base-directory", str(self.folder), "--disable-api-nodes"),
            *("--preview-method", "latent2rgb"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self._environment}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self._wait_until_up()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def object_info(self) -> dict[str, Any]:
        """What ComfyUI knows of every node."""
        found: dict[str, Any] = self._get("/object_info")
        return found

    def start(self, prompt: Prompt, client: str = "") -> str:
        """Queue a prompt; its id. What happens meanwhile is told to `client`."""
        return str(self._post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"])

    def text(self, path: str) -> str:
        """What the web server has there. Raises OSError if that is nothing."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def interrupt(self) -> None:
        """Press Cancel."""
        self._post("/interrupt", {})

    def wait(self, prompt_id: str) -> dict[str, Any]:
        """The finished prompt's entry in the history."""
        end = time.monotonic() + _RUN_S
        while time.monotonic() < end:
            entry = self._get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                found: dict[str, Any] = entry
                return found
            time.sleep(0.05)
        raise AssertionError(f"the prompt did not end\n{self.log.read_text()[-4000:]}")

    def run(self, prompt: Prompt) -> dict[str, Any]:
        """Outputs of a prompt that must succeed, by node."""
        entry = self.wait(self.start(prompt))
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
        outputs: dict[str, Any] = entry["outputs"]
        return outputs

    def error(self, prompt_id: str) -> str:
        """The message with which a prompt failed."""
        messages = self.wait(prompt_id)["status"]["messages"]
        kind, details = messages[-1]
        assert kind == "execution_error", messages
        return str(details["exception_message"])

    def file(self, entry: dict[str, str]) -> Path:
        """An output file."""
        return self.folder / entry["type"] / entry["subfolder"] / entry["filename"]

    def latent(self, outputs: dict[str, Any], node: str = "save") -> npt.NDArray[np.float32]:
        """What a SaveLatent node wrote."""
        path = self.file(outputs[node]["latents"][0])
        values: npt.NDArray[np.float32] = load_file(path)["latent_tensor"]
        return values

    def _wait_until_up(self) -> None:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-4000:]
            try:
                self._get("/queue")
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"ComfyUI does not answer\n{self.log.read_text()[-4000:]}")

    def _get(self, path: str) -> Any:
        return json.loads(self.text(path))

    def _post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
