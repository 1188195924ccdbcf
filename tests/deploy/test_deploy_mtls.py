"""The pods of the overlay `mtls`, run as processes with certificates of their own authority."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from deploy.check import manifests
from deploy.check.manifests import COORDINATOR, NODE
from ditmesh.client import TLS, Client, Progress
from ditmesh.errors import DitmeshError
from tests.certificates import Authority
from tests.deploy.pods import Pod, wait_for
from tests.e2e.cluster import MODEL, model_folder
from tests.e2e.jobs import executors, random_job
from tests.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Encrypted:
    """A coordinator and a node with mounted Secrets, and a client's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        found = manifests.build(manifests.OVERLAYS / "mtls")
        models = model_folder(folder / "models", MODEL)
        first = free_ports(700)
        config = {
            "RANKS": "1",
            "NODES": f"127.0.0.1:{first + 350 + 11}",
            "DEVICE": "cpu",
            "DTYPE": "fp32",
        }

        def pod(program: str, port: int) -> Pod:
            secret = folder / "secrets" / program
            mounts = {"/models": models, "/var/lib/ditmesh": folder, "/etc/ditmesh/tls": secret}
            log = folder / f"{program}.log"
            return Pod(found, program, first_port=port, mounts=mounts, config=config, log=log)

        self.coordinator, self.node = pod(COORDINATOR, first), pod(NODE, first + 350)
        self.address = self.coordinator.address(50_050)

    def renew(self, authority: Authority, *trusted: Authority) -> None:
        """A new certificate for everybody, as cert-manager and the kubelet do it."""
        for name in (COORDINATOR, NODE, "ditmesh-client"):
            authority.issue(self._folder / "secrets" / name, name, *trusted)

    def client(self) -> Client:
        """One that has just read its certificate."""
        mine = self._folder / "secrets" / "ditmesh-client"
        return Client(self.address, tls=TLS(mine / "ca.crt", mine / "tls.crt", mine / "tls.key"))

    def shown(self) -> str:
        """The certificate that the coordinator shows now."""
        host, _, port = self.address.partition(":")
        return ssl.get_server_certificate((host, int(port))).strip()

    def held(self) -> str:
        """The coordinator's certificate in its Secret."""
        pem = (self._folder / "secrets" / COORDINATOR / "tls.crt").read_text()
        return pem.strip()

    def wait_for_group(self) -> None:
        """Wait until the node is in the group."""
        wait_for(
            lambda: self.coordinator.healthy("group"), "the group", self.coordinator, self.node
        )


def test_every_call_is_mutual_tls_and_certificates_are_renewed(tmp_path: Path) -> None:
    """A client with a certificate gets its job done; one without is turned away, probes are not.

    In the middle of a job everybody gets certificates of another authority. The job goes on. A
    node that starts anew is found by a coordinator that does not.
    """
    pods = Encrypted(tmp_path)
    first, second = Authority(tmp_path / "first"), Authority(tmp_path / "second")
    pods.renew(first)
    try:
        pods.node.start()
        pods.coordinator.start()
        pods.wait_for_group()
        for pod in (pods.coordinator, pods.node):
            wait_for(lambda pod=pod: pod.probe("readinessProbe"), "readiness", pod)  # type: ignore[misc]
        with Client(pods.address) as stranger, pytest.raises(DitmeshError):
            stranger.cluster()

        renewed: list[int] = []

        def renew_once(progress: Progress) -> None:
            if progress.step >= 2 and not renewed:
                renewed.append(progress.step)
                pods.renew(second, first)

        with pods.client() as client:
            result = client.sample(**random_job(1), on_progress=renew_once)
            assert executors(result) == [("group", 0, 8)]
        assert pods.shown() == pods.held()
        pods.renew(second)
        pods.node.terminate()
        assert pods.node.wait() == 0
        wait_for(lambda: not pods.coordinator.healthy("group"), "the loss", pods.coordinator)
        pods.node.start()
        pods.wait_for_group()
        with pods.client() as client:
            assert executors(client.sample(**random_job(2))) == [("group", 0, 8)]
        for ended in (pods.node, pods.coordinator):
            ended.terminate()
        assert (pods.node.wait(), pods.coordinator.wait()) == (0, 0)
    finally:
        pods.coordinator.kill()
        pods.node.kill()
