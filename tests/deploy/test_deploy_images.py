"""The images' locks and the Dockerfile, as far as they can be judged without building."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from deploy.check.manifests import ROOT

DOCKER = ROOT / "docker"
LOCKS = sorted(path.name for path in DOCKER.glob("*.lock"))


def _packages(lock: str) -> dict[str, str]:
    text = (DOCKER / lock).read_text()
    return dict(re.findall(r"^([a-z0-9.-]+)==([^ \\]+)", text, re.MULTILINE))


def _instructions() -> list[str]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_a_version_and_a_hash(lock: str) -> None:
    """Nothing is installed that was not looked at when the lock was made."""
    entries = re.split(r"\n(?=\S)", (DOCKER / lock).read_text().strip())
    assert len(entries) > 30
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+ \\\n", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_the_locks_agree() -> None:
    """Nodes and the coordinator run the same versions: they share code and exchange tensors."""
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for package, version in _packages(lock).items():
            versions.setdefault(package, set()).add(version)
    assert {p: v for p, v in versions.items() if len(v) > 1} == {}
    (torch,) = versions["torch"]
    assert f"torch=={torch}" in (ROOT.parent / "constraints.txt").read_text()
    assert f"ARG TORCH_CPU=torch=={torch}+cpu" in (DOCKER / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("lock", "extra"), [("node.lock", "node"), ("coordinator.lock", "coordinator")]
)
def test_a_lock_satisfies_the_project(lock: str, extra: str) -> None:
    """A dependency that was added to pyproject.toml is in the locks too."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["sampler"], *extras[extra]]
    names = {re.split(r"[><=;\[ ]", line)[0].lower() for line in wanted} - {"ditmesh"}
    missing = names - set(_packages(lock))
    # torch's CPU build comes from an index of its own, by the Dockerfile.
    assert missing == (set() if extra == "node" else {"torch"})


def test_the_coordinator_is_slim() -> None:
    """Neither CUDA nor sequence parallelism is in it."""
    packages = _packages("coordinator.lock")
    assert not [p for p in packages if p.startswith("nvidia") or p in ("xfuser", "triton")]
    assert [p for p in _packages("node.lock") if p.startswith("nvidia")]


def test_images_are_built_from_a_pinned_base_and_run_as_nobody() -> None:
    """A version in the base's name, a numeric user in what is shipped, nothing fetched by ADD."""
    instructions = _instructions()
    base = next(line for line in instructions if line.startswith("ARG PYTHON_IMAGE="))
    assert re.search(r":\d+\.\d+\.\d+-slim-[a-z]+$", base)
    stages = [line.split()[1] for line in instructions if line.startswith("FROM ")]
    assert set(stages) == {"${PYTHON_IMAGE}", "build", "runtime"}
    assert "USER 10001:10001" in instructions
    assert not [line for line in instructions if line.startswith("ADD ")]
    installs = [line for line in instructions if "pip install" in line]
    assert all("--no-deps" in line for line in installs)


def test_every_image_of_the_overlays_has_a_target() -> None:
    """What the manifests ask for, the Dockerfile builds."""
    targets = {line.split()[-1] for line in _instructions() if line.startswith("FROM runtime AS ")}
    asked = set()
    for file in (ROOT / "k8s").rglob("kustomization.yaml"):
        asked |= set(re.findall(r"registry\.example/ditmesh-([a-z-]+)", file.read_text()))
    assert asked == targets


def test_only_what_the_images_are_made_of_is_sent() -> None:
    """The build context is a list of what is let in; every COPY is on it."""
    ignore = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    allowed = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    assert "*" in ignore
    for line in _instructions():
        if line.startswith("COPY ") and "--from=" not in line:
            words = [word for word in line.split()[1:-1] if not word.startswith("--")]
            for word in words:
                assert any(Path(word).match(pattern) for pattern in allowed), word
