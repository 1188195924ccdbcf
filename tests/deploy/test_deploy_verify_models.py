"""`verify-models`, which stands between a volume of weights and a process that loads them."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from deploy.check.manifests import ROOT

PROGRAM = ROOT / "docker" / "verify-models"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of two weight files, one of them behind a link as download caches make them."""
    folder = tmp_path / "models"
    (folder / "a model").mkdir(parents=True)
    (folder / "a model" / "weights.safetensors").write_bytes(b"one")
    (tmp_path / "blob").write_bytes(b"two")
    (folder / "other.safetensors").symlink_to(tmp_path / "blob")
    (folder / "config.json").write_text("{}")
    return folder


def _sums(models: Path, *extra: str) -> Path:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(models)}"
        for path in sorted(models.rglob("*.safetensors"))
    ]
    file = models.parent / "SHA256SUMS"
    file.write_text("\n".join(["# a comment", "", *lines, *extra]) + "\n")
    return file


def _verify(models: Path, sums: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PROGRAM), str(models), str(sums)], capture_output=True, text=True, timeout=30
    )


def test_listed_weights_pass(models: Path) -> None:
    """Whole files pass, in folders with spaces, behind links, and below comments."""
    done = _verify(models, _sums(models))
    assert done.returncode == 0, done.stderr
    assert "a model/weights.safetensors: OK" in done.stdout


def test_a_changed_file_is_refused(models: Path) -> None:
    """One other byte is enough."""
    sums = _sums(models)
    (models / "other.safetensors").write_bytes(b"twx")
    done = _verify(models, sums)
    assert done.returncode == 1
    assert "other.safetensors: FAILED" in done.stdout
    assert "refusing" in done.stderr


def test_an_unlisted_file_is_refused(models: Path) -> None:
    """Weights that nobody vouched for are not loaded for want of a sum."""
    sums = _sums(models)
    (models / "a model" / "more.safetensors").write_bytes(b"three")
    done = _verify(models, sums)
    assert done.returncode == 1
    assert "a model/more.safetensors: not listed" in done.stderr


def test_a_name_is_not_a_pattern(models: Path) -> None:
    """A listed name vouches for itself only, not for names that it matches or is part of."""
    sums = _sums(models)
    (models / "otherXsafetensors.safetensors").write_bytes(b"two")
    assert _verify(models, sums).returncode == 1


def test_a_missing_file_is_refused(models: Path) -> None:
    """A volume that was filled half is not served."""
    sums = _sums(models)
    (models / "a model" / "weights.safetensors").unlink()
    assert _verify(models, sums).returncode == 1


@pytest.mark.parametrize("content", ["", "# nothing\n\n"])
def test_an_empty_list_is_refused(models: Path, content: str) -> None:
    """The list of the base overlay is empty: whoever forgets it learns so."""
    sums = models.parent / "SHA256SUMS"
    sums.write_text(content)
    done = _verify(models, sums)
    assert done.returncode == 1
    assert "lists nothing" in done.stderr


@pytest.mark.parametrize(
    "line", ["abc  other.safetensors", f"{'0' * 64}  /etc/passwd", f"{'0' * 64}  ../secret"]
)
def test_a_line_that_is_no_sum_is_refused(models: Path, line: str) -> None:
    """Nothing outside the folder is read, and a misspelt line is not passed over."""
    done = _verify(models, _sums(models, line))
    assert done.returncode == 1
    assert "must hold lines of" in done.stderr


def test_the_demonstration_lists_the_shipped_model() -> None:
    """The sums of the CPU demonstration are those of the model that its image holds."""
    repository = ROOT.parent
    sums = ROOT / "k8s" / "overlays" / "cpu-demo" / "SHA256SUMS"
    done = _verify(repository / "models", sums)
    assert done.returncode == 0, f"{done.stderr}\nhas the model changed? Then run: make model-sums"
