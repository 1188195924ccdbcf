"""Text encoders, tokenizers and autoencoder of a pipeline folder, sound and damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ditmesh.errors import DamagedModel, UnknownModel
from ditmesh.models.info import inspect, scan

SHIPPED = Path(__file__).parents[2] / "models" / "pixel-portraits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model that a test may damage."""
    return Path(shutil.copytree(SHIPPED, tmp_path / "models" / "portraits"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "transformer/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "text_encoder_2/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
        "scheduler/scheduler_config.json",
        "latent_preview.json",
    ],
)
def test_any_truncated_file_is_named(folder: Path, file: str) -> None:
    """Whatever part of a download broke, the message says which file."""
    inspect(folder)
    cut(folder / file)
    with pytest.raises(DamagedModel) as caught:
        inspect(folder)
    assert str(folder / file) in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("text_encoder", "text_encoder: no such folder, though model_index.json lists it"),
        ("vae/diffusion_pytorch_model.safetensors", "vae: no .safetensors weights"),
        ("text_encoder_2/config.json", "text_encoder_2/config.json: cannot be read"),
        ("tokenizer_2/tokenizer.json", "tokenizer_2: no tokenizer.json"),
    ],
)
def test_a_missing_part_is_named(folder: Path, missing: str, words: str) -> None:
    """A folder that lacks what its index lists is damaged, with a hint what to do."""
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DamagedModel) as caught:
        inspect(folder)
    assert words in str(caught.value)


def test_what_stops_a_start(folder: Path) -> None:
    """A wanted model that is damaged or unknown does, and so does a folder of damaged ones."""
    root = folder.parent
    scan(root).check_start(["portraits"])
    with pytest.raises(UnknownModel, match="there are: portraits"):
        scan(root).check_start(["landscapes"])
    sound = root / "sound"
    shutil.copytree(folder, sound)
    cut(folder / "vae" / "diffusion_pytorch_model.safetensors")
    scan(root).check_start()  # the sound one can be served
    with pytest.raises(DamagedModel, match="truncated"):
        scan(root).check_start(["portraits"])
    shutil.rmtree(sound)
    with pytest.raises(DamagedModel, match="vae"):
        scan(root).check_start()


def test_an_empty_folder_stops_nothing(tmp_path: Path) -> None:
    """Models may be added later; there is nothing to be damaged."""
    scan(tmp_path).check_start()
