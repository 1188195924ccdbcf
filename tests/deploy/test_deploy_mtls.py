"""The pods of the overlay `mtls`, run as processes with certificates of their own authority."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from deploy.check import manifests
from deploy.check.manifests import COORDINATOR, NODE
from ditmesh.client import TLS, Client
from ditmesh.errors import DitmeshError
from tests.deploy.pods import Pod, wait_for
from tests.e2e.cluster import MODEL, free_ports, model_folder
from tests.e2e.jobs import executors, random_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def _authority(folder: Path) -> None:
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.crt")),
        *("-subj", "/CN=authority", "-days", "1"),
    )


def _secret(folder: Path, name: str) -> Path:
    """A folder as cert-manager's Secret is mounted: certificate, key, authority."""
    secret = folder / name
    secret.mkdir()
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *(
            "-keyout",
            str(secret / "tls.key"),
            "-out",
            str(secret / "request"),
            "-subj",
            f"/CN={name}",
        ),
    )
    (secret / "names").write_text(f"subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1\n")
    _openssl(
        *("x509", "-req", "-in", str(secret / "request"), "-out", str(secret / "tls.crt")),
        *("-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key"), "-CAcreateserial"),
        *("-days", "1", "-extfile", str(secret / "names")),
    )
    (secret / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
    return secret


def test_every_call_is_mutual_tls_and_probes_still_answer(tmp_path: Path) -> None:
    """A client with a certificate gets its job done; one without is turned away, probes are not."""
    _authority(tmp_path)
    found = manifests.build(manifests.OVERLAYS / "mtls")
    models = model_folder(tmp_path / "models", MODEL)
    first = free_ports(700)
    config = {
        "RANKS": "1",
        "NODES": f"127.0.0.1:{first + 350 + 11}",
        "DEVICE": "cpu",
        "DTYPE": "fp32",
    }

    def pod(program: str, port: int) -> Pod:
        secret = _secret(tmp_path, program)
        mounts = {"/models": models, "/var/lib/ditmesh": tmp_path, "/etc/ditmesh/tls": secret}
        log = tmp_path / f"{program}.log"
        return Pod(found, program, first_port=port, mounts=mounts, config=config, log=log)

    coordinator, node = pod(COORDINATOR, first), pod(NODE, first + 350)
    mine = _secret(tmp_path, "ditmesh-client")
    tls = TLS(mine / "ca.crt", mine / "tls.crt", mine / "tls.key")
    try:
        node.start()
        coordinator.start()
        wait_for(lambda: coordinator.healthy("group"), "the group", coordinator, node)
        assert coordinator.probe("readinessProbe")
        assert node.probe("readinessProbe")
        with Client(coordinator.address(50_050), tls=tls) as client:
            assert executors(client.sample(**random_job(1))) == [("group", 0, 8)]
        with Client(coordinator.address(50_050)) as stranger, pytest.raises(DitmeshError):
            stranger.cluster()
        for ended in (node, coordinator):
            ended.terminate()
        assert (node.wait(), coordinator.wait()) == (0, 0)
    finally:
        coordinator.kill()
        node.kill()
